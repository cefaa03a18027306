"""Outer updates: one file each, found by name in the registry."""

from metarl.outer import (  # noqa: F401 (each registers)
    binom_maml,
    bmaml,
    e_maml,
    es_maml,
    fo_maml,
    ggs_maml,
    hf_maml,
    imaml,
    lsf,
    maml,
    maml_plus_plus,
    moreau,
    multi_step_maml,
    multitask,
    reptile,
    sign_maml,
)
from metarl.outer.pull_back import outer_gradient, pull_back
from metarl.outer.registry import (
    OUTER,
    Annealing,
    Method,
    builder,
    check_method,
    inner_defaults,
    make_method,
    options,
    register,
    without_particles,
)

__all__ = [
    "OUTER",
    "Annealing",
    "Method",
    "builder",
    "check_method",
    "inner_defaults",
    "make_method",
    "options",
    "outer_gradient",
    "pull_back",
    "register",
    "without_particles",
]
