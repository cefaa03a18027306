"""Rows of a comparison that train several networks together: updates on particles, and an ensemble."""

from metarl.outer import make_method

ENSEMBLE = "ensemble"
"""The row of independent `maml` networks, whose predictions are averaged."""


def update_of(row: str) -> str:
    """The outer update of a row."""
    return "maml" if row == ENSEMBLE else row


def has_particles(row: str) -> bool:
    """Whether a row trains several networks together."""
    return row == ENSEMBLE or make_method(row).needs_particles
