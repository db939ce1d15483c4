"""Mistakes planted in module 04 by tests/mutants.py: (old text, new text, what mistake it is, the test that notices it)."""

MUTANTS = [
    (
        "return -((v @ self.W) * h).sum(-1) - v @ self.b - h @ self.c",
        "return ((v @ self.W) * h).sum(-1) - v @ self.b - h @ self.c",
        "the energy's coupling with its sign flipped",
        "test_energy_is_minus_the_bilinear_form",
    ),
]
