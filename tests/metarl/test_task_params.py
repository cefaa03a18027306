"""Parameters of chosen tasks: the types they arrive in, and numbers that do not fit."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from metarl.task_params import Ends, check_task, read_tasks

SPACE = Dict(
    {
        "goal": Box(-0.5, 0.5, (2,)),
        "speed": Discrete(3, start=-1),
        "cell": MultiDiscrete([2, 4]),
        "open": MultiBinary(2),
        "count": Box(0, 100, (), np.int8),
        "direction": Ends(-1.0, 1.0, ()),
    }
)
TASK: dict[str, Any] = {"goal": [1, 0], "speed": -1, "cell": [1, 3], "open": [0, 1], "count": 7, "direction": -1}


def test_numbers_get_the_types_of_the_space() -> None:
    """Integers and double precision for floats; a goal outside the bounds is a task, too."""
    found = read_tasks(SPACE, [TASK, {**TASK, "goal": np.array([0.25, -3.0]), "speed": np.int64(1)}])
    assert {name: values.dtype for name, values in found.items()} == {name: SPACE[name].dtype for name in SPACE}
    assert found["goal"].tolist() == [[1.0, 0.0], [0.25, -3.0]]
    assert found["speed"].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("open", [256, 0], "must be numbers of type int8"),  # the last 8 bits are zero
        ("count", 300, "must be numbers of type int8"),
        ("speed", 2, r"task\['speed'\] must be in Discrete\(3, start=-1\), got "),
        ("speed", -2, "must be in Discrete"),
        ("cell", [0, 4], r"must be in MultiDiscrete\(\[2 4\]\), got .*\[0, 4\]"),
        ("open", [2, 0], "must be in MultiBinary"),
        ("direction", 0.5, r"must be -1\.0 or 1\.0, got .*0\.5"),
        ("direction", -3, r"must be -1\.0 or 1\.0, got .*-3"),
    ],
)
def test_values_that_the_type_or_the_entry_does_not_have_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task(SPACE, {**TASK, name: value})
    with pytest.raises(ValueError, match=message):
        read_tasks(SPACE, {k: np.array([v, value if k == name else v]) for k, v in TASK.items()})


def test_only_the_ends_are_drawn() -> None:
    space = Ends(np.array([-1.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32), seed=0)
    draws = np.array([space.sample() for _ in range(200)])
    assert [np.unique(column).tolist() for column in draws.T] == [[-1.0, 1.0], [0.0, 3.0]]
    assert all(draw in space for draw in draws)
    assert np.array([0.0, 3.0], np.float32) not in space
    with pytest.raises(ValueError, match="must be None"):
        space.sample(probability=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be \[-1\.  0\.\] or \[1\. 3\.\]"):
        check_task(Dict({"both": space}), {"both": [-1.0, 1.0]})
