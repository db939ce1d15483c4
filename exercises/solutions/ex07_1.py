"""Solution of ex07_1."""

from torch import nn


class Energy(nn.Module):
    """A convolutional energy: (B, 1, 8, 8) -> (B,)."""

    def __init__(self):
        super().__init__()
        smooth = nn.SiLU()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            smooth,
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            smooth,
            nn.Flatten(),
            nn.Linear(32 * 4, 1),
        )

    def forward(self, x):
        """E(x), one number an image."""
        return self.net(x)[:, 0]


MUTANTS = [
    ("self.net(x)[:, 0]", "self.net(x)", "remove the last dimension"),
    ("nn.Flatten(),", "nn.BatchNorm2d(32), nn.Flatten(),", "the other images of the batch"),
    ("nn.Flatten(),", "nn.Dropout(0.5), nn.Flatten(),", "has no place in an energy"),
    ("nn.SiLU()", "nn.ReLU()", "flat between its kinks"),
    ("self.net(x)[:, 0]", "self.net(x)[:, 0].detach()", "has no graph"),
    ("self.net(x)[:, 0]", "self.net(x)[:, 0] * 0", "All images have the same energy"),
    ("self.net(x)[:, 0]", "self.net(x)[:, 0].mean()", "but should have (6,)"),
    ("nn.Conv2d(1, 16, 4, stride=2, padding=1)", "nn.Conv2d(1, 16, 1, stride=2)", "do not matter to E"),
]
