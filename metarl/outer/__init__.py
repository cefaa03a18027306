"""Outer updates: one file each, found by name in the registry."""

from metarl.outer import e_maml, fo_maml, hf_maml, imaml, maml, moreau, multi_step_maml, reptile, sign_maml  # noqa: F401 (each registers)
from metarl.outer.pull_back import outer_gradient, pull_back
from metarl.outer.registry import OUTER, Method, builder, check_method, inner_defaults, make_method, options, register

__all__ = [
    "OUTER",
    "Method",
    "builder",
    "check_method",
    "inner_defaults",
    "make_method",
    "options",
    "outer_gradient",
    "pull_back",
    "register",
]
