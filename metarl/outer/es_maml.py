"""ES-MAML (Song et al., 2020, arXiv 1910.01215): no derivatives at all, only scores of perturbed parameters.

    G(w) = -1/(2 s K) sum_{k=1}^{K} [F(U(w + s u_k); D_o) - F(U(w - s u_k); D_o')] u_k,    u_k ~ N(0, I)

F is the score, such as the return. G estimates minus the gradient of E F(U(w)) smoothed by N(0, s^2 I), without bias.
The adaptation U does not need to be smooth. It takes N steps, each from the scores of M pairs or proposals:

    es:             w <- w + alpha/(2 M) sum_m [F'(w + s v_m) - F'(w - s v_m)] v_m
    hill_climbing:  w <- w + alpha v_m  if that has a better score than w,    m = 1, ..., M

F' is F standardised over the 2 M points of a task.
Both follow the abstract and the released code, which standardises, too, and divides the step of `es` by s. There the
perturbations are shared by 50 tasks; here each task has its own in each iteration, as many as there are tasks in all.
Every point needs episodes of its own, so an iteration with K pairs has 2 K (2 M N + 1) + 1 draws (`es`) or
2 K ((M + 1) N + 1) + 1 (`hill_climbing`): use few `episodes` and many tasks. The last one is at w, to log its score.

The variance grows with the number of parameters. The released settings have linear policies.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarl.derivatives import scores, task_numbers
from metarl.errors import check_choice, check_int, check_real
from metarl.inner import rules
from metarl.outer.directions import normal_directions
from metarl.outer.hf_maml import shift
from metarl.outer.registry import Method, register
from metarl.partial import start
from metarl.tree import add_scaled, broadcast, tree_map
from metarl.types import Inner, MetaGrad, Params, ScoreRule, TaskBatch

OUTER, INNER = 1, 2  # first numbers of the directions' labels; plain adaptation has 0


class WithoutGradients:
    """What rules that move by scores have in common: as rules for gradients they raise a `ValueError`."""

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        raise ValueError("the rule of es_maml moves by scores, got gradients: it does not work with another update")


@dataclass(frozen=True)
class EvolutionStep(WithoutGradients):
    """A step along the estimated gradient of the score, whose expected length is about `learning_rate`.

    Args:
        learning_rate: alpha, in units of the parameters.
        queries: M, pairs of perturbed points.
        smoothing: s, the standard deviation of the perturbation of one number.
    """

    learning_rate: float
    queries: int
    smoothing: float

    def move(
        self, tasks: TaskBatch, params: Params, at: Params, label: tuple[int, ...], names: tuple[str, ...] | None = None
    ) -> Params:
        """The stacked parameters after one step; `at` and `label` give the directions."""
        like, directions, found = {k: params[k] for k in names or params}, [], []
        for m in range(self.queries):
            v = normal_directions(at, (*label, m), task_numbers(tasks), like)
            directions.append(v)
            found += [score_at(tasks, shift(params, sign * self.smoothing, v), "inner") for sign in (1, -1)]
        values = standardize(torch.stack(found))  # [2 M, T]: above and below in turn
        for v, weight in zip(directions, values[0::2] - values[1::2], strict=True):
            params = vmap(shift)(params, self.learning_rate / (2 * self.queries) * weight, v)
        return params


@dataclass(frozen=True)
class HillClimbing(WithoutGradients):
    """Proposals around the best point so far, each kept if its score on its own draw is better.

    Args:
        learning_rate: alpha, the standard deviation of a proposal in each number.
        queries: M, proposals.
    """

    learning_rate: float
    queries: int

    def move(
        self, tasks: TaskBatch, params: Params, at: Params, label: tuple[int, ...], names: tuple[str, ...] | None = None
    ) -> Params:
        """The stacked parameters after M proposals; `at` and `label` give the directions."""
        like, best = {k: params[k] for k in names or params}, score_at(tasks, params, "inner")
        for m in range(self.queries):
            v = normal_directions(at, (*label, m), task_numbers(tasks), like)
            proposal = shift(params, self.learning_rate, v)
            score = score_at(tasks, proposal, "inner")
            better = score > best
            best = torch.where(better, score, best)
            params = vmap(lambda b, x, y: tree_map(lambda p, q: torch.where(b, p, q), x, y))(better, proposal, params)
        return params


def score_at(tasks: TaskBatch, params: Params, role: Literal["inner", "outer"]) -> Tensor:
    """The scores `[T]` on a fresh draw."""
    return scores(tasks, params, tasks.draw(params, role))


def standardize(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the first dimension; zeros where all are equal."""
    centred = values - values.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return torch.where(deviation > 0, centred / torch.where(deviation > 0, deviation, 1.0), 0.0)


@register("es_maml")
def es_maml(
    inner_lr: float = 0.002,
    inner_steps: int = 1,
    *,
    adaptation: Literal["es", "hill_climbing"] = "es",
    directions: int = 1,
    queries: int = 2,
    smoothing: float = 0.02,
) -> Method:
    """ES-MAML. `directions` is K, pairs for each task; `queries` is M, for each inner step; `smoothing` is s.

    `inner_lr` is alpha in the units of the parameters, not a factor of a gradient. Evaluation adapts in the same way,
    by scores. The logged score after adaptation is the mean over the perturbed parameters.

    Example, on (x - 1)^2 from x = 0 without inner steps, where every pair gives u grad f(0) u:
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> w, method = {"x": torch.tensor(0.0)}, es_maml(smoothing=0.5)
        >>> u = normal_directions(w, (OUTER, 0), range(1), {"x": torch.zeros(1)})["x"]
        >>> grads = method.update(w, tasks, method.inner._replace(steps=0)).grads["x"]
        >>> torch.allclose(grads, -2 * u.square())
        True
    """
    check_choice("adaptation", adaptation, ("es", "hill_climbing"))
    check_int("directions", directions)
    check_int("queries", queries)
    check_real("smoothing", smoothing)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        at, after = start(inner.rule, params), []
        w = broadcast(at, tasks.num_tasks)
        grads = tree_map(torch.zeros_like, w)
        tasks.draw(w, "inner")  # for the log: the score before adaptation
        for k in range(directions):
            u = normal_directions(at, (OUTER, k), task_numbers(tasks), w)
            # both sides adapt with the same directions
            above, below = (climb(tasks, add_scaled(w, sign * smoothing, u), inner, at, k) for sign in (1, -1))
            grads = vmap(add_scaled)(grads, (below - above) / (2 * smoothing * directions), u)
            after += [above, below]
        return MetaGrad(grads, torch.stack(after).mean(0))

    rule = HillClimbing(inner_lr, queries) if adaptation != "es" else EvolutionStep(inner_lr, queries, smoothing)
    return Method(update, Inner(rule, inner_steps), follows_adapted_loss=False)


def climb(tasks: TaskBatch, w: Params, inner: Inner, at: Params, k: int) -> Tensor:
    """The scores after adaptation from `w`, `[T]`."""
    for j, rule in enumerate(rules(inner)):
        if not isinstance(rule, ScoreRule):
            raise ValueError(f"the inner rule of es_maml must move by scores (metarl.types.ScoreRule), got {rule!r}")
        w = rule.move(tasks, w, at, (INNER, k, j))
    return score_at(tasks, w, "outer")
