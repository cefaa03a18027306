"""A callback that keeps what training shows."""

from metarl import MetaLearner
from metarl.callbacks import Callback, Metrics
from metarl.types import Params


class Keep(Callback):
    """Keeps all metrics, and the parameters they belong to."""

    def __init__(self) -> None:
        self.metrics: list[Metrics] = []
        self.params: list[Params] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.metrics.append(metrics)
        self.params.append(learner.params)
