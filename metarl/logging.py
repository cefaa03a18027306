"""Writing a run down: a line of JSON per iteration, and the same numbers in TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from metarl.callbacks import Callback, Metrics
from metarl.checkpoint import write_atomically

if TYPE_CHECKING:
    from metarl.learner import MetaLearner


class RunLog(Callback):
    """Appends to `metrics.jsonl` and to TensorBoard events in `folder`; `texts` (Markdown) go to TensorBoard by tag.

    A resumed run drops what an interrupted one had logged beyond its last checkpoint, so that every iteration is there
    once.
    """

    first_process_only = True

    def __init__(self, folder: Path, texts: Mapping[str, str] = MappingProxyType({})) -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        self.texts = texts
        self._writer: SummaryWriter | None = None

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        kept = [line for line in self._lines() if json.loads(line)["iteration"] <= learner.iterations]
        write_atomically(self.path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode()))
        writer = self.writer(purge_step=learner.iterations + 1)
        for tag, text in self.texts.items():
            writer.add_text(tag, text)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({k: v if math.isfinite(v) else None for k, v in metrics.items()}) + "\n")
        for tag, value in metrics.items():
            if tag != "iteration":
                self.writer().add_scalar(tag, value, learner.iterations)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def writer(self, purge_step: int | None = None) -> SummaryWriter:
        """The TensorBoard writer, opened when first needed."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        return self._writer

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A figure in TensorBoard."""
        self.writer().add_figure(tag, figure, step, close=False)

    def _lines(self) -> list[str]:
        """The whole lines written so far; one cut off by a crash is dropped."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_text().split("\n")[:-1] if line.endswith("}")]
