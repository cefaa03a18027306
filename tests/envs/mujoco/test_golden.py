"""Golden trajectories: what every distribution gave when it was defined, so that a change below it is noticed.

`python -m tests.envs.mujoco.test_golden` writes them anew, which is right only when a definition is meant to change;
the versions it ran with are in the files.
"""

import json
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs import MUJOCO, make_distribution

FOLDER = Path(__file__).parent / "golden"
T, STEPS, SHOWN = 2, 25, 60


def trajectory(name: str) -> dict[str, Any]:
    """Two tasks, fixed actions: rewards of every step and the (first) observations after the first and the last."""
    tasks = make_distribution(name)
    task = tasks.sample(T, np.random.default_rng(0))
    env = tasks.make_vec(task, 1)
    space = tasks.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    actions = np.random.default_rng(1).uniform(0.5 * space.low, 0.5 * space.high, (STEPS, T, *space.shape))
    first = env.reset(seed=0)[0]
    steps = [env.step(action.astype(np.float32)) for action in actions]
    return {
        "task": {key: value.ravel()[:4].tolist() for key, value in task.items()},
        "first_observations": first[:, :SHOWN].tolist(),
        "last_observations": steps[-1][0][:, :SHOWN].tolist(),
        "rewards": [step[1].tolist() for step in steps],
        "terminated": [step[2].tolist() for step in steps],
    }


def flat(value: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in (value.values() if isinstance(value, dict) else value)])


@pytest.mark.parametrize("name", sorted(MUJOCO))
def test_golden(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    made_with = golden.pop("versions")
    if made_with["mujoco"].split(".")[0] != mujoco.__version__.split(".")[0]:
        pytest.skip(
            f"made with MuJoCo {made_with['mujoco']}; 3 simulates ants and humanoids, at first hoppers, otherwise"
        )
    now, about = trajectory(name), f"made with {made_with}"
    assert set(now) == set(golden)
    for key, value in golden.items():
        # contacts amplify the last bits: of another processor, not of another simulator
        np.testing.assert_allclose(flat(now[key]), flat(value), rtol=1e-5, atol=1e-5, err_msg=f"{key}; {about}")
    assert np.ptp(golden["rewards"], axis=0).min() > 1e-3


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    versions = {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__}
    for name in sorted(MUJOCO):
        text = json.dumps({"versions": versions, **trajectory(name)})
        (FOLDER / f"{name}.json").write_text(text.replace('], "', '],\n"') + "\n")


if __name__ == "__main__":
    main()
