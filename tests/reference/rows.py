"""The table of all methods: each with its options and the reference that it must equal."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from metarl import Method, make_method
from tests.reference.updates import (
    Answer,
    Data,
    bayesian,
    before_adaptation,
    binomial,
    evolution,
    first_order,
    hessian_free,
    implicit,
    linearised,
    moreau,
    product,
    reptile,
    sampled_objective,
    several_losses,
    sign,
    smoothed,
    unrolled_sgd,
)


class Row(NamedTuple):
    """One method with one choice of options, and what it must equal."""

    name: str
    reference: Callable[..., Answer]
    options: dict[str, Any] = {}  # noqa: RUF012
    alpha: float = 0.2
    passed: tuple[str, ...] = ()  # options the reference wants too
    inner_draws: int | None = None  # default: one for each step
    own_draws: bool = False  # it draws at random points, so that the reference has no data of recorded draws
    separable: bool = True  # a task's meta-gradient does not depend on the other tasks
    iteration: int | None = None  # of an annealed method; default: after all annealing
    particles: int = 0  # M; 0 for a method that works on one network

    def __str__(self) -> str:
        at = [] if self.iteration is None else [f"iteration_{self.iteration}"]
        return "-".join([self.name, *(f"{k}_{v}" for k, v in self.options.items()), *at])

    def method(self, steps: int) -> Method:
        method = make_method(self.name, self.alpha, steps, **self.options)
        return method if self.iteration is None else dataclasses.replace(method, update=method.at(self.iteration))

    def answer(self, w: Tensor, data: Data) -> Answer:
        return self.reference(w, data, self.alpha, **{k: self.options[k] for k in self.passed})


FIXED: dict[str, Any] = {"learn_inner_lr": None, "per_step_norm": False}

ROWS = [
    Row("maml", product),
    Row("maml", unrolled_sgd, {"hessian_data": "reuse"}),
    Row("multi_step_maml", product),
    Row("fo_maml", first_order),
    Row("hf_maml", hessian_free),
    Row("hf_maml", hessian_free, {"hessian_data": "reuse"}, passed=("hessian_data",)),
    Row("hf_maml", hessian_free, {"delta": "published", "rho": 0.5}, passed=("delta", "rho")),
    Row("sign_maml", sign, alpha=0.02),
    Row("moreau", moreau),
    Row("reptile", reptile),
    *(
        Row("e_maml", sampled_objective, {"baseline": baseline}, passed=("baseline",), separable=baseline != "tasks")
        for baseline in ("none", "tasks", "trajectories")
    ),
    Row("multitask", before_adaptation, inner_draws=0),
    Row("lsf", linearised),
    *(
        Row("binom_maml", binomial, {"order": order, **reuse}, passed=("order", *reuse))
        for order, reuse in [(0, {}), (1, {}), (2, {}), (4, {}), (5, {}), (7, {}), (2, {"hessian_data": "reuse"})]
    ),
    # each task has its own directions, by its number in the batch
    *(
        Row("ggs_maml", smoothed, options, passed=tuple(options), separable=False)
        for options in [{}, {"hessian_data": "reuse", "directions": 2}, {"smoothing": 0.1, "directions": 1}]
    ),
    *(
        Row("es_maml", evolution, options, passed=tuple(options), own_draws=True, separable=False)
        for options in [
            {},
            {"directions": 3, "queries": 1, "smoothing": 0.3},
            {"adaptation": "hill_climbing"},
            {"adaptation": "hill_climbing", "directions": 2, "queries": 3},
        ]
    ),
    # its learned step sizes and batch normalisation have tests of their own, test_maml_plus_plus.py
    Row("maml_plus_plus", product, FIXED),
    *(
        Row(
            "maml_plus_plus",
            functools.partial(several_losses, progress=iteration / 40, second_order=iteration >= 10),
            {**FIXED, "hessian_data": data, "multi_step_iterations": 40, "second_order_from": 10},
            passed=("hessian_data",),
            iteration=iteration,
        )
        for iteration, data in [(0, "fresh"), (9, "fresh"), (10, "fresh"), (10, "reuse"), (39, "fresh")]
    ),
    # lam above the curvature's modulus, or there is nothing for conjugate gradients to solve
    Row("imaml", implicit, {"cg_steps": 20, "lam": 5.0}, alpha=0.1, passed=("lam",)),
    Row("imaml", implicit, {"cg_steps": 20, "lam": 20.0}, alpha=0.02, passed=("lam",)),
    *(
        Row("bmaml", bayesian, {"temperature": 0.3, **options}, passed=("temperature", *options), particles=particles)
        for options, particles in [
            ({"leader_steps": 2}, 3),
            ({"prior_precision": 0.7}, 4),  # the median of six pairs is a mean of two
            ({"objective": "loss", "prior_precision": 0.7}, 3),
            ({}, 1),
        ]
    ),
]
ONE_NETWORK = [row for row in ROWS if not row.particles]
AT_THE_PATH = [row for row in ONE_NETWORK if not row.own_draws]
