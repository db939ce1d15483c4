"""Solution of ex07_3."""


def contrastive_loss(energy, x_data, x_model, strength):
    """The loss whose slope in the weights is minus the likelihood's, plus the penalty's."""
    e_data, e_model = energy(x_data), energy(x_model.detach())
    gap = e_data.mean() - e_model.mean()
    return gap + strength * (e_data.square().mean() + e_model.square().mean())


MUTANTS = [
    ("x_model.detach()", "x_model", "back through the chains"),
    ("energy(x_model.detach())", "energy(x_model).detach()", "only x_model is"),
    ("gap = e_data.mean() - e_model.mean()", "gap = e_model.mean() - e_data.mean()", "The gap is reversed"),
    ("e_data.square().mean() + e_model.square().mean()", "e_data.mean().square() + e_model.mean().square()", "Square first"),
    (" + strength * (e_data.square().mean() + e_model.square().mean())", "", "The penalty is missing"),
    ("gap + strength", "gap - strength", "run away"),
    (" + e_model.square().mean()", "", "chains' penalty is missing"),
    ("(e_data.square().mean() + e_model.square().mean())", "gap.square()", "gap itself is squared"),
    ("gap + strength * ", "gap + ", "strength is not used"),
]
