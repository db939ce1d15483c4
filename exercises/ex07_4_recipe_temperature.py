"""ex07_4 How cold is a published recipe (level 1, 10 minutes)

Image recipes write their sampler as

    x <- x - alpha grad E(x) + noise_std n,        n ~ N(0, I),

with alpha and noise_std chosen freely. Ours (module 07, eq. 2) is x - (e/2) grad E + sqrt(e T) n. At which temperature T
does the recipe sample? (JEM's: alpha = 1, noise_std = 0.01.)

Shapes   alpha, noise_std positive numbers -> a number
Source   Grathwohl et al. (2020); Nijkamp et al. (2020)
Read     07_neural_ebms.py, section loop
"""

import math


def recipe_temperature(alpha, noise_std):
    """The temperature at which the recipe samples exp(-E/T)."""
    raise NotImplementedError
