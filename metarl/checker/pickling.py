"""The check that a distribution can be sent to worker processes."""

import pickle
from collections.abc import Iterator

from metarl.checker.gaps import gaps
from metarl.checker.probe import SHORT, Probe, same
from metarl.checker.reporting import say
from metarl.types import TaskDistribution


def survives_pickling(probe: Probe) -> Iterator[str]:
    """And is the same afterwards."""
    try:
        restored: TaskDistribution = pickle.loads(pickle.dumps(probe.distribution))
    except Exception as error:  # pickle raises whatever the objects raise
        wanted, found = "survive pickling, for worker processes", f"{type(error).__name__}: {error}"
        mend = "use functions and classes of a module instead of lambdas and local ones, open files and devices in make"
        yield say("the distribution", wanted, found, mend)
        return
    again = Probe(restored, probe.num_tasks, probe.episodes, probe.seed)
    actions = probe.actions(SHORT)
    if not same(probe.tasks(), again.tasks()) or gaps(
        probe.alone(0, actions, probe.seed), again.alone(0, actions, probe.seed)
    ):
        mend = "let __getstate__, __setstate__ or __reduce__ keep everything that sample and make use"
        yield say("the distribution", "be the same after pickling", "other tasks or another environment", mend)
