"""Every optimiser of torch.optim makes outer steps and resumes bit for bit, or is refused by name at construction."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")

CLASSES = {
    name: found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
}
REFUSED = {"LBFGS": "evaluates the loss again", "SparseAdam": "dense gradients", "Muon": "2D parameters"}


def source() -> FiniteSumSource:
    rng = np.random.default_rng(0)
    data = {"c": torch.from_numpy(rng.normal(size=(4, 6, 3)))}

    def loss(w: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((w["x"].sum(0) - batch["c"]) ** 2).mean() + w["y"].square().sum()

    params = {"x": torch.ones(2, 3, dtype=torch.float64), "y": torch.ones(2, dtype=torch.float64)}
    return FiniteSumSource(FiniteSumTaskBatch(loss, data), params)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(REFUSED)))
def test_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"meta_batch_size": 2, "optimizer": CLASSES[name], "learning_rate": 0.01}
    whole = MetaLearner(source(), "maml", **arguments).learn(6)
    MetaLearner(source(), "maml", **arguments).learn(3).save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", source()).learn(3)
    for key, leaf in whole.params.items():
        assert not torch.equal(leaf, source().initial_params()[key])
        assert torch.equal(leaf, resumed.params[key])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer must.*{name} cannot: .*{REFUSED[name]}"):
        MetaLearner(source(), "maml", meta_batch_size=2, optimizer=CLASSES[name])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (functools.partial(torch.optim.SGD, momentum=-1.0), "Invalid momentum"),
        (lambda leaves, lr: None, "makes a NoneType"),
        (lambda leaves: torch.optim.SGD(leaves, 0.1), "unexpected keyword argument 'lr'"),
    ],
)
def test_factories_that_cannot_work(factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^optimizer must.*{message}"):
        MetaLearner(source(), "maml", meta_batch_size=2, optimizer=factory)
