"""Few-shot classification: N ways, K shots (Vinyals et al., 2016; as in Finn et al., 2017).

A task has `ways` classes in random order, which sets their labels, with `shots` support and `queries` query images of
each. Its loss is the mean cross-entropy, its score the accuracy.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from metarl.devices import pick_device
from metarl.errors import check_choice, check_int
from metarl.random import torch_generator
from metarl.supervised.class_sets import ClassSet, as_floats
from metarl.supervised.networks import NetworkSource
from metarl.supervised.oracle import FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params, Role


@dataclass
class FewShot(NetworkSource):
    """A source of few-shot tasks: classes with their images, and the network that classifies them.

    `dataclasses.replace(source, classes=...)` makes the same kind of tasks from other classes, such as for testing.

    Args:
        classes: to draw from.
        network: a module from images `[n, ...]` to logits `[n, ways]` (see `metarl.supervised.networks`). Its
            parameters are the starting point of training; they are never changed.
        ways: N, classes of a task.
        shots: K, support images of each class.
        queries: query images of each class.
        setting: `finite_sum` draws S_i and T_i once for each task, as in the published protocol. `resampling` draws
            fresh images of the task's classes every time, as in the theory of resampling; N inner steps then see N K
            images of a class, so its accuracies are not K-shot accuracies.
        device: where parameters and images of a batch live.

    Raises:
        ValueError: for bad numbers, more ways than classes, a class with too few images (naming it), and a network
            that does not fit the images or the ways.

    Example:
        >>> import numpy as np
        >>> from metarl.supervised.networks import mlp
        >>> from metarl.supervised.digits import digits
        >>> source = FewShot(digits().train, mlp(128, ways=5), ways=5, shots=1, queries=15)
        >>> tasks = source.sample(4, np.random.default_rng(0))
        >>> tasks.support["x"].shape, tasks.query["x"].shape
        (torch.Size([4, 5, 1, 8, 16]), torch.Size([4, 75, 1, 8, 16]))
    """

    classes: ClassSet
    network: nn.Module
    _: KW_ONLY
    ways: int = 5
    shots: int = 1
    queries: int = 15
    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    device: torch.device | str = "cpu"
    score_name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        check_int("ways", self.ways, minimum=2)
        check_int("shots", self.shots)
        check_int("queries", self.queries)
        check_choice("setting", self.setting, ("finite_sum", "resampling"))
        if self.ways > len(self.classes):
            raise ValueError(f"ways must be at most {len(self.classes)}, the number of classes, got {self.ways}")
        once = self.setting == "finite_sum"
        self.classes.check_enough(self.shots + self.queries if once else max(self.shots, self.queries))
        self._set_fixed(device=pick_device(self.device))
        if not isinstance(self.network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {self.network!r}")
        self.network.to(self.device)
        takes = f"images {self.classes.image_shape}"
        self._check_network(takes, f"{self.ways} images (one logit for each of the ways)", [self.ways, self.ways])

    def sample(self, num_tasks: int, rng: np.random.Generator) -> FiniteSumTaskBatch | ResamplingTaskBatch:
        """`num_tasks` tasks; the classes of one are all different."""
        generator = torch_generator(rng)
        total = len(self.classes)
        chosen = [_choose(total, self.ways, generator).tolist() for _ in range(check_int("num_tasks", num_tasks))]
        if self.setting == "finite_sum":
            images = self._draw(chosen, self.shots + self.queries, generator)
            support, query = self._batch(images[:, :, : self.shots]), self._batch(images[:, :, self.shots :])
            return FiniteSumTaskBatch(self.loss, support, query, self.score)

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            return self._batch(self._draw(chosen, self.queries if role == "outer" else self.shots, generator))

        return ResamplingTaskBatch(self.loss, num_tasks, sampler, generator, self.score)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The mean cross-entropy of one task."""
        log_probs = self._predict(params, batch["x"]).log_softmax(1)
        return -log_probs.gather(1, batch["y"][:, None]).mean()

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The accuracy on one task."""
        return self.score_predictions(self._predict(params, batch["x"]), batch)

    def predict(self, params: Params, batch: Batch) -> Tensor:
        """The probabilities of the classes in one task, `[n, ways]`."""
        return self._predict(params, batch["x"]).softmax(1)

    def score_predictions(self, predictions: Tensor, batch: Batch) -> Tensor:
        """The accuracy of probabilities or logits `[n, ways]` in one task."""
        return (predictions.argmax(1) == batch["y"]).to(predictions.dtype).mean()

    def _draw(self, chosen: list[list[int]], number: int, generator: torch.Generator) -> Tensor:
        """`number` different images of each class of each task, `[T, ways, number, ...]`."""
        images = self.classes.images
        rows = [images[c][_choose(len(images[c]), number, generator)] for task in chosen for c in task]
        return torch.stack(rows).reshape(len(chosen), self.ways, number, *self.classes.image_shape)

    def _batch(self, images: Tensor) -> Batch:
        """Images `[T, ways, n, ...]` as data of the loss: x `[T, ways n, ...]` and their labels y `[T, ways n]`."""
        leaf = self._leaf()
        x = as_floats(images.flatten(1, 2), leaf)
        y = torch.arange(self.ways, device=leaf.device).repeat_interleave(images.shape[2])
        return {"x": x, "y": y.expand(len(x), -1)}

    def _probe(self) -> Tensor:
        """One image of each of N classes."""
        return self._batch(torch.stack([x[:1] for x in self.classes.images[: self.ways]])[None])["x"][0]


def _choose(total: int, number: int, generator: torch.Generator) -> Tensor:
    """`number` different integers out of 0 ... `total` - 1, in random order."""
    return torch.randperm(total, generator=generator)[:number]
