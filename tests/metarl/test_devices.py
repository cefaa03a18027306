"""Devices by name: one error that says what is there, wherever a device is given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents import make_policy
from metarl.devices import available, pick_device
from metarl.envs import Navigation
from metarl.rl import ReinforcementLearning
from metarl.supervised.sinusoid import Sinusoids

BAD = ["gpu", "cuda:7", "meta", torch.device("meta"), torch.device("cuda:7"), 0, None]
BAD += [] if torch.cuda.is_available() else ["cuda", torch.device("cuda")]
BAD += [] if torch.backends.mps.is_available() else ["mps"]


def learning(device: Any) -> torch.device | str:
    tasks = Navigation(horizon=3)
    policy = make_policy(tasks.observation_space, tasks.action_space)
    return ReinforcementLearning(tasks, policy, device=device).device


WHERE: dict[str, Callable[[Any], Any]] = {
    "pick_device": pick_device,
    "ReinforcementLearning": learning,
    "make_vec": lambda device: Navigation().make_vec({"goal": np.zeros((1, 2), np.float32)}, 1, device),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("device", BAD, ids=repr)
def test_refused_with_what_is_there(where: str, device: Any) -> None:
    with pytest.raises(ValueError, match=r"^device must be 'auto' or one of \['cpu'") as error:
        WHERE[where](device)
    assert all(name in str(error.value) for name in available())


@pytest.mark.parametrize("device", [d for d in BAD if str(d) != "meta"], ids=repr)
def test_supervised(device: Any) -> None:
    with pytest.raises(ValueError, match=r"^device must be"):
        Sinusoids(device=device)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
def test_taken(device: Any) -> None:
    wanted = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    assert torch.device(learning(device)).type == wanted
