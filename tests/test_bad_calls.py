"""Bad calls from Python: every argument of the public constructors and methods, a `ValueError` that names it."""

import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from metarl import MetaLearner, agents, envs, make_method, register
from metarl.agents import from_sb3, make_policy, to_sb3
from metarl.callbacks import Callback, Checkpointing, HeldOutEvaluation, ProgressBar
from metarl.logging import RunLog
from metarl.rl import ReinforcementLearning
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.networks import conv4, mlp
from metarl.supervised.sinusoid import Sinusoids

NOT_COUNTS = (0, -1, 2.0, "2", None, True, 2**63, float("nan"))
NOT_SEEDS = (-1, 2.0, "2", None)
NOT_POSITIVE = (0, -1.0, float("nan"), float("inf"), "0.1")
NOT_NAMES = ("nothing_like_it", None, 3)
UNIT, NO_SPACES = (-0.1, 1.5, float("nan"), "0.9", None), (None, 3, Box)


class Failing(Callback):
    """Whose state is not to be had."""

    def on_iteration(self, learner: MetaLearner, metrics: dict[str, float]) -> None:
        raise RuntimeError("on purpose")

    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("no state")


@cache
def tasks() -> envs.Navigation:
    return envs.Navigation(horizon=3)


@cache
def policy() -> agents.PolicyModule:
    return make_policy(tasks().observation_space, tasks().action_space, policy_kwargs={"net_arch": [4]})


def rl(distribution: Any = None, policy_: Any = None, **arguments: Any) -> ReinforcementLearning:
    arguments = {"episodes": 2, **arguments}
    return ReinforcementLearning(distribution or tasks(), policy_ or policy(), **arguments)


def quadratics(loss: Any = None) -> FiniteSumSource:
    data = {"c": torch.tensor([1.0, 2.0])}
    return FiniteSumSource(
        FiniteSumTaskBatch(loss or (lambda p, b: (p["w"] - b["c"]) ** 2), data), {"w": torch.tensor(0.0)}
    )


def learner(**arguments: Any) -> MetaLearner:
    return MetaLearner(**{"source": quadratics(), "meta_batch_size": 2, **arguments})


def navigation_batch() -> Any:
    return rl().sample(2, np.random.default_rng(0))


SPACES = {"observation_space": Box(-1, 1, (2,)), "action_space": Box(-1, 1, (2,))}

CALLS: dict[str, tuple[Callable[..., Any], Mapping[str, Any], Mapping[str, tuple[Any, ...]]]] = {
    "MetaLearner": (
        learner,
        {},
        {
            "source": (None, 3, ReinforcementLearning, "navigation", tasks()),
            "outer": NOT_NAMES,
            "inner_lr": NOT_POSITIVE,
            "inner_steps": (0, -1, 2.0, "2"),
            "outer_options": (3, ["hessian_data"], "fresh"),
            "meta_batch_size": NOT_COUNTS,
            "learning_rate": (*NOT_POSITIVE, None),
            "optimizer": (3, None, "adam", dict, lambda leaves, lr: None),
            "max_grad_norm": NOT_POSITIVE,
            "schedule": (3, "linear", 0.1),
            "seed": NOT_SEEDS,
            "processes": (2, None, "two"),
        },
    ),
    "from_parts": (
        lambda **a: MetaLearner.from_parts(**a),
        {"source": quadratics(), "method": make_method("maml"), "meta_batch_size": 2},
        {
            "source": (None, 3),
            "method": (None, 3, *NOT_NAMES),
            "outer_step": (3, "adam", torch.optim.Adam),
            "meta_batch_size": NOT_COUNTS,
            "seed": NOT_SEEDS,
            "processes": (2, None, "two"),
        },
    ),
    "learn": (
        lambda **a: learner().learn(**a),
        {"iterations": 1},
        {
            "iterations": NOT_COUNTS,
            "callbacks": (ProgressBar(), None, 3, [3], [None], [ProgressBar], print, [print]),
        },
    ),
    "adapt": (
        lambda **a: learner().adapt(**a),
        {"tasks": quadratics().tasks},
        {
            "tasks": (None, 3, quadratics(), {"goal": np.zeros((2, 2))}, [1, 2]),
            "steps": (-1, 1.0, "1"),
            "step_sizes": (3, "abc", 0.1, [0.1, 0.1], [-1.0], ["x"]),
            "episodes": (3, "all"),
        },
    ),
    "evaluate": (
        lambda **a: learner().evaluate(**a),
        {},
        {
            "source": (3, "navigation", tasks()),
            "num_tasks": NOT_COUNTS,
            "steps": (-1, 1.0, "1", None),
            "step_sizes": (3, "abc", 0.1, [0.1], [0.1, 0.1, -1.0], [None, None, "x"]),
            "seed": NOT_SEEDS,
        },
    ),
    "ReinforcementLearning": (
        lambda **a: ReinforcementLearning(**a),
        {"distribution": tasks(), "policy": policy()},
        {
            "distribution": (None, 3, envs.Navigation, "navigation"),
            "policy": (None, 3, nn.Linear, "mlp"),
            "episodes": NOT_COUNTS,
            "surrogate": NOT_NAMES,
            "dice_lambda": (0.5,),
            "discount": UNIT,
            "gae_lambda": UNIT,
            "baseline": ("nothing_like_it", 3),
        },
    ),
    "RL.sample": (
        lambda **a: rl().sample(**a),
        {"num_tasks": 2, "rng": np.random.default_rng(0)},
        {"num_tasks": NOT_COUNTS, "rng": (None, 3, torch.Generator())},
    ),
    "FiniteSumTaskBatch": (
        lambda **a: FiniteSumTaskBatch(**a),
        {"loss": lambda p, b: p["w"], "support": {"c": torch.ones(2)}},
        {"loss": (None, 3), "support": (None, 3, {}, [1])},
    ),
    "FiniteSumSource": (
        lambda **a: FiniteSumSource(**a),
        {"tasks": quadratics().tasks, "params": {"w": torch.tensor(0.0)}},
        {"tasks": (None, 3), "params": (None, 3, {})},
    ),
    "FiniteSumSource.sample": (
        lambda **a: quadratics().sample(**a),
        {"num_tasks": 1, "rng": np.random.default_rng(0)},
        {"num_tasks": (*NOT_COUNTS, 3), "rng": (None, 3)},
    ),
    "BatchSizes": (lambda **a: quadratic_sizes(**a), {}, {"inner": (0, -1, 2.0, "x"), "outer": (0, 2.5)}),
    "Sinusoids": (
        lambda **a: Sinusoids(**a),
        {},
        {"shots": NOT_COUNTS, "queries": NOT_COUNTS, "setting": NOT_NAMES, "seed": NOT_SEEDS},
    ),
    "mlp": (
        mlp,
        {"in_features": 2, "ways": 2},
        {"in_features": NOT_COUNTS, "ways": NOT_COUNTS, "hidden": ((0,), 3, ("x",), None), "seed": NOT_SEEDS},
    ),
    "conv4": (
        conv4,
        {"in_channels": 1, "image_size": 28, "ways": 2},
        {"ways": NOT_COUNTS, "filters": NOT_COUNTS, "seed": NOT_SEEDS},
    ),
    "make_method": (make_method, {"name": "maml"}, {"inner_lr": NOT_POSITIVE, "inner_steps": (0, 1.0, "1")}),
    "make_policy": (
        make_policy,
        SPACES,
        {
            "observation_space": NO_SPACES,
            "action_space": NO_SPACES,
            "policy_kwargs": (3, {"no_such": 1}, {"use_sde": True}),
            "seed": NOT_SEEDS,
        },
    ),
    "to_sb3": (to_sb3, {"policy": policy(), "params": None, "env": None}, {"policy": (None, 3, nn.Linear(2, 2))}),
    "from_sb3": (from_sb3, {}, {"model": (None, 3, policy())}),
    "make_distribution": (envs.make_distribution, {}, {"name": NOT_NAMES}),
    "Navigation": (envs.Navigation, {}, {"horizon": NOT_COUNTS, "goal_low": ("x", None, float("nan"))}),
    "GymDistribution": (envs.GymDistribution, {"env_id": "CartPole-v1", "space": None, "horizon": 5}, {}),
    "HeldOutEvaluation": (
        HeldOutEvaluation,
        {},
        {
            "every": NOT_COUNTS,
            "num_tasks": NOT_COUNTS,
            "seed": NOT_SEEDS,
            "step_sizes": (3, "abc", [-1.0], ["x"]),
            "source": (3, "navigation"),
        },
    ),
    "Checkpointing": (Checkpointing, {"path": Path("file")}, {"every": NOT_COUNTS, "path": (None, 3)}),
    "RunLog": (RunLog, {"folder": Path("folder")}, {"folder": (None, 3)}),
    "register": (register, {}, {"name": (3, None)}),
    "save": (lambda **a: learner().save(**a), {}, {"path": (None, 3)}),
    "load": (MetaLearner.load, {"path": "nothing", "source": quadratics()}, {"path": (None, 3)}),
    "load_state_dict": (lambda **a: learner().load_state_dict(**a), {}, {"state": (None, 3, {}, [1])}),
}


def quadratic_sizes(**sizes: Any) -> Any:
    data = {"c": torch.ones(2, 4)}
    return FiniteSumTaskBatch(lambda p, b: p["w"], data, batch_sizes=BatchSizes(**sizes), generator=torch.Generator())


ROWS = [
    (name, argument, number)
    for name, (_, _, bad) in CALLS.items()
    for argument, values in bad.items()
    for number in range(len(values))
]


@pytest.mark.parametrize(("name", "argument", "number"), ROWS, ids=lambda part: str(part))
def test_names_the_argument(name: str, argument: str, number: int) -> None:
    call, good, bad = CALLS[name]
    with pytest.raises(ValueError, match=re.compile(rf"\b{argument}\b")):
        call(**{**good, argument: bad[argument][number]})


def test_enough_rows() -> None:
    assert len(ROWS) > 200


@pytest.mark.parametrize("loss", [lambda p, b: torch.stack([p["w"], b["c"]]), lambda p, b: 3.0, lambda p, b: None])
def test_a_loss_that_is_not_one_number(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"\bloss must"):
        learner(source=quadratics(loss)).learn(1)


def test_a_schedule_that_gives_no_number() -> None:
    with pytest.raises(ValueError, match=r"\bschedule must"):
        learner(schedule=lambda _: "fast").learn(1)


@pytest.mark.parametrize("bad", [3, [3], [Failing()]])
def test_a_learner_goes_on_after_a_bad_callback(bad: Any, tmp_path: Path) -> None:
    one = learner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Failing's state is given up, with a warning
        with pytest.raises((ValueError, RuntimeError)):
            one.learn(1, bad)
    one.save(tmp_path / "saved")
    done = one.iterations
    assert one.learn(2).iterations == done + 2
    again = MetaLearner.load(tmp_path / "saved", quadratics()).learn(2)
    assert torch.equal(again.params["w"], one.params["w"])
