"""What is certified: every registered outer update of one network with every surrogate and choice of Hessian data."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from metarl.outer import Method, make_method, options, without_particles
from metarl.rl import SURROGATES

VARIED = {"hessian_data": ("fresh", "reuse"), "baseline": ("none", "tasks", "trajectories")}

PULLED = ("maml", "multi_step_maml", "maml_plus_plus", "hf_maml", "ggs_maml", "binom_maml")
FIRST_ORDER, SAMPLED, LINEARISED = ("fo_maml",), ("e_maml",), ("lsf",)
FIXED = {"learn_inner_lr": None, "per_step_norm": False}
"""Options that are certified at these values: no meta-parameters. The update is that after all annealing."""
OTHER = {
    "sign_maml": "the loss after sign steps",
    "moreau": "Moreau envelopes",
    "reptile": "a displacement",
    "imaml": "the loss at the proximal point",
    "multitask": "the loss before adaptation",
    "es_maml": "the smoothed score after steps by scores",
}
LINEAR = (*PULLED, *FIRST_ORDER, *SAMPLED, *LINEARISED, "sign_maml", "moreau", "reptile")
"""In D_o and in D_h: expected data give the expectation over them."""
ENUMERATED = tuple(name for name in LINEAR if name != "ggs_maml")  # whose random directions cannot be enumerated


class Estimator(NamedTuple):
    """An outer update with its surrogate, options and number of inner steps."""

    update: str
    surrogate: str
    options: dict[str, Any]
    steps: int = 1

    @property
    def hessian_data(self) -> str:
        """The source of D_h; empty for updates without D_h."""
        fixed = {"multi_step_maml": "fresh", "e_maml": "reuse", "lsf": "reuse"}
        default = options(self.update).get("hessian_data", fixed.get(self.update, ""))
        return str(self.options.get("hessian_data", default))

    @property
    def is_truncated(self) -> bool:
        """Whether it leaves out terms of the product by design."""
        order = self.options.get("order", options(self.update).get("order"))
        return order is not None and order < self.steps

    @property
    def label(self) -> str:
        """The update's name, its order, if it was chosen, and its baseline, unless it is "none"."""
        order, baseline = self.options.get("order"), self.options.get("baseline", "none")
        described = [f"order {order}"] * (order is not None) + [f"baseline {baseline}"] * (baseline != "none")
        return ", ".join([f"`{self.update}`", *described])

    def method(self, alpha: float) -> Method:
        """The registered method."""
        fixed: dict[str, Any] = {name: value for name, value in FIXED.items() if name in options(self.update)}
        return make_method(self.update, alpha, self.steps, **fixed, **self.options)


def enumerate_estimators(baselines: tuple[str, ...]) -> Iterator[Estimator]:
    """Every registered update of one network with every surrogate and every choice of D_h and of these baselines."""
    varied = {**VARIED, "baseline": baselines}
    for update, surrogate in itertools.product(without_particles(), SURROGATES):
        names = [name for name in varied if name in options(update)]
        for values in itertools.product(*(varied[name] for name in names)):
            yield Estimator(update, surrogate, dict(zip(names, values, strict=True)))
