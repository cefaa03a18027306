"""What an update drew, and adaptation on it written again in plain torch, for one task at a time."""

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, kl_divergence
from torch.func import functional_call

from metarl import Method
from metarl.outer import OUTER
from metarl.step import MeanGrad, average
from metarl.step.replay import Measured, Point, Replay
from metarl.tree import take, tree_map
from metarl.types import Batch, Params, Role, TaskBatch
from metarl.wrappers import RecordDraws
from tests.reference.problems import reinforcement_learning, source

ALPHA = 0.4
UPDATES = [name for name, build in OUTER.items() if build().follows_adapted_loss]


class Recorded:
    """A batch of tasks, the parameters of `method`, and what its update drew there."""

    def __init__(self, method: Method, kind: str = "navigation") -> None:
        self.method, self.kind = method, kind
        self.tasks, params = reinforcement_learning(kind)
        rule = method.learned_rule
        self.params = params if rule is None else {**params, **rule.initial_meta(params)}
        recorder = RecordDraws(self.tasks)
        self.meta_grad = method.update(self.params, recorder, method.inner)
        self.draws = recorder.draws

    @property
    def replay(self) -> Replay:
        return Replay(self.tasks, self.draws, self.method.inner_in_training)

    def old(self, kind: type[Point] = Point) -> Point:
        return kind(self.replay, self.params)

    def measure(self, params: Params) -> Measured:
        return self.replay.at(params).measure(self.old())

    def batches(self, role: Role, task: int) -> list[Batch]:
        return [take(draw.batch, task) for draw in self.draws if draw.role == role]

    def update(self, params: Params, tasks: TaskBatch) -> MeanGrad:
        return average(self.method.update(params, tasks, self.method.inner))

    def policy(self, params: Params, batch: Batch) -> Distribution:
        """The action distributions in all states."""
        network = source(self.kind).policy
        own = {name: leaf for name, leaf in params.items() if not name.startswith("meta/")}
        outputs = functional_call(network, own, (batch["obs"].flatten(0, 1),))
        return Categorical(logits=outputs[0]) if len(outputs) == 1 else Normal(*outputs)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Minus the mean of likelihood ratio times advantage, over all steps."""
        log_probs = self.policy(params, batch).log_prob(batch["actions"].flatten(0, 1))
        log_probs = log_probs.sum(-1) if log_probs.ndim == 2 else log_probs
        weights = (batch["mask"] * batch["advantages"]).flatten()
        return -((log_probs - batch["log_probs"].flatten()).exp() * weights).mean()

    def kl(self, old: Params, new: Params, batch: Batch) -> Tensor:
        found = kl_divergence(self.policy(old, batch), self.policy(new, batch))
        found, mask = found.sum(-1) if found.ndim == 2 else found, batch["mask"].flatten()
        return (found * mask).sum() / mask.sum()

    def adapt(self, w: Params, task: int, first_order: bool = False) -> Params:
        """Inner steps whose gradients are those of D_in, and whose derivatives are those of D_h if that was drawn."""
        hessian = self.batches("hessian", task)[::-1]  # drawn from the last step to the first
        for j, batch in enumerate(self.batches("inner", task)):
            size = {k: step_size(w, k, j) for k in w}
            own = {k: leaf for k, leaf in w.items() if not k.startswith("meta/")}
            grads = torch.autograd.grad(self.loss(own, batch), list(own.values()), create_graph=True)
            if hessian or first_order:
                grads = tuple(g.detach() for g in grads)
            if hessian and not first_order:
                other = torch.autograd.grad(self.loss(own, hessian[j]), list(own.values()), create_graph=True)
                grads = tuple(g + x - x.detach() for g, x in zip(grads, other, strict=True))
            w = {**w, **{k: own[k] - size[k] * g for k, g in zip(own, grads, strict=True)}}
        return w

    def matrix(self, first_order: bool = False) -> Tensor:
        """mean_i J_i^T F_i J_i, dense: the Hessian of the adapted policies' divergence."""
        start = flat(self.params)
        total = torch.zeros(len(start), len(start), dtype=start.dtype)
        for task in range(self.tasks.num_tasks):
            batch = self.batches("outer", task)[-1]
            end = tree_map(Tensor.detach, self.adapt(self.leaves(start.requires_grad_()), task))

            def divergence(w: Tensor, task: int = task, batch: Batch = batch, end: Params = end) -> Tensor:
                return self.kl(end, self.adapt(self.leaves(w), task, first_order), batch)

            total += torch.autograd.functional.hessian(divergence, start.detach())
        return total / self.tasks.num_tasks

    def leaves(self, w: Tensor) -> Params:
        pieces = w.split([leaf.numel() for leaf in self.params.values()])
        return {k: piece.view(leaf.shape) for (k, leaf), piece in zip(self.params.items(), pieces, strict=True)}


def step_size(w: Params, name: str, step: int) -> Tensor | float:
    learned = w.get("meta/inner_lr", w.get(f"meta/inner_lr/{name.rpartition('.')[0] or name}"))
    return ALPHA if learned is None else learned[step] if learned.ndim else learned


def flat(params: Params) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in params.values()])


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    assert (found - wanted).norm() <= tolerance * wanted.norm()
