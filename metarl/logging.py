"""Logs of a run: a line of JSON per iteration, and the same numbers in TensorBoard."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from metarl.callbacks import Callback, Metrics
from metarl.errors import check_type
from metarl.files import write_atomically
from metarl.learner import MetaLearner

logger = logging.getLogger(__name__)

Line: TypeAlias = dict[str, float | None]
"""The metrics of one iteration; `None` for a number that was not finite."""


def parse_line(text: str) -> Line | None:
    """One line of `metrics.jsonl`, numbers or `null` by tag; `None` if it is not valid."""
    try:
        line: Any = json.loads(text)
        if not isinstance(line, dict) or not all(v is None or type(v) in (int, float) for v in line.values()):
            return None
        return {key: v if v is None or math.isfinite(v) else None for key, v in line.items()}
    except (ValueError, RecursionError, OverflowError):  # an integer may be too large for a float
        return None


def read_metrics(folder: Path, *, untrained: bool = False) -> list[Line]:
    """The logged iterations in `folder`, in order, without broken lines.

    With `untrained` the first line may be that of iteration 0, which has the evaluation of the untrained policy only.
    """
    found = {}
    for text in _texts(folder):
        if (line := parse_line(text)) and (number := _iteration(line)) is not None and (number or untrained):
            found[number] = line
    return [found[number] for number in sorted(found)]


def _iteration(line: Line) -> int | None:
    """The number of the iteration, 0 for the untrained policy; `None` if the line has none."""
    number = line.get("iteration")
    return number if isinstance(number, int) and number >= 0 else None


def _texts(folder: Path) -> list[str]:
    """The lines of the file with any content, without a last one that a crash cut off."""
    try:
        return (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []


class RunLog(Callback):
    """Appends to `metrics.jsonl` and to TensorBoard events in `folder`; `texts` (Markdown) go to TensorBoard by tag.

    A resumed run drops the lines that an interrupted run logged after its last checkpoint, and broken lines, so that
    every iteration is there once; it warns of missing iterations.
    """

    first_process_only = True

    def __init__(self, folder: Path, texts: Mapping[str, str] = MappingProxyType({})) -> None:
        check_type("folder", folder, (str, Path), "a path")
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        self.texts = texts
        self._writer: SummaryWriter | None = None

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        self.repair(learner.iterations)
        untrained = learner.iterations == 0
        writer = self.writer(purge_step=0 if untrained else learner.iterations + 1)
        for tag, text in self.texts.items():
            writer.add_text(tag, text)
        writer.add_custom_scalars(chart_layout(learner.source.score_name))

    def repair(self, iterations: int) -> None:
        """Keep one line for each of the first `iterations`, and that of the untrained policy, in order."""
        texts = _texts(self.folder)
        # without iterations the untrained policy is evaluated again
        found = read_metrics(self.folder, untrained=True) if iterations else []
        kept = [line for line in found if (_iteration(line) or 0) <= iterations]
        content = "".join(json.dumps(line) + "\n" for line in kept)
        if not self.path.exists() or self.path.read_bytes() != content.encode():
            write_atomically(self.path, lambda file: file.write(content.encode()))
        there = {number for line in kept if (number := _iteration(line))}
        first = min(there, default=1) if texts else iterations + 1  # training may have begun without a log
        if missing := [number for number in range(first, iterations + 1) if number not in there]:
            logger.warning("%s lacks %s: it was damaged, so curves have gaps there", self.path, _ranges(missing))

    def on_untrained(self, learner: MetaLearner, metrics: Metrics) -> None:
        if len(metrics) > 1:
            self.on_iteration(learner, metrics)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        line = json.dumps({k: v if math.isfinite(v) else None for k, v in metrics.items()}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        for tag, value in metrics.items():
            if tag != "iteration":
                self.writer().add_scalar(tag, value, learner.iterations)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def writer(self, purge_step: int | None = None) -> SummaryWriter:
        """The TensorBoard writer, opened at first use."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        return self._writer

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add a figure to TensorBoard."""
        self.writer().add_figure(tag, figure, step, close=False)

    def animation(self, tag: str, gif: bytes, shape: tuple[int, ...], step: int) -> None:
        """Add an animated GIF to TensorBoard's images; `shape` is that of its pictures, `[height, width, 3]`."""
        image = Summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=gif)
        events = self.writer().file_writer
        assert events is not None
        events.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def hyperparameters(self, settings: Mapping[str, Any], finals: Mapping[str, float], step: int) -> None:
        """Add the run to TensorBoard's HParams tab: its settings, and the numbers to sort runs by."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        for tag, value in finals.items():
            self.writer().add_scalar(tag, value, step)
        events = self.writer().file_writer
        assert events is not None
        for summary in hparams(plain, dict(finals)):
            events.add_summary(summary)


def chart_layout(score: str) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's Custom Scalars tab: what belongs together in one chart."""

    def both(tag: str) -> list[Any]:
        return ["Multiline", [f"{tag}_before$", f"{tag}_after$"]]

    return {
        "before and after adaptation": {
            score: both(f"rollout/{score}"),
            "entropy": both("policy/entropy"),
            "standard deviation": both("policy/std"),
            "episode length": both("rollout/episode_length"),
            "success": both("rollout/success"),
            "explained variance": both("baseline/explained_variance"),
        },
        "held-out tasks": {f"{score} after each step": ["Multiline", [f"eval/{score}_step_.*"]]},
        "seconds": {"sampling and learning": ["Multiline", ["time/sampling_seconds", "time/learning_seconds"]]},
    }


def _ranges(numbers: list[int]) -> str:
    """`iterations 3 to 5, 9`."""
    starts = [n for n, before in zip(numbers, [None, *numbers], strict=False) if before != n - 1]
    ends = [n for n, after in zip(numbers, [*numbers[1:], None], strict=False) if after != n + 1]
    spans = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    return "iterations " + ", ".join(spans[:5]) + (" ..." if len(spans) > 5 else "")
