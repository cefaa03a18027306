"""Tasks, options, names, pictures, and what is said where MuJoCo is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from matplotlib.figure import Figure

from metarl.envs import make_distribution, make_env
from metarl.envs.mujoco import AntGoal, HalfCheetahDirection, HalfCheetahVelocity, HopperRandomParameters
from tests.environment import with_root

ROOT = Path(__file__).parents[3]
MANY = 4000


def drawn(name: str, **options: Any) -> np.ndarray:
    (values,) = make_distribution(name, **options).sample(MANY, np.random.default_rng(0)).values()
    return values


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("half_cheetah_velocity", {}, 0.0, 2.0),
        ("half_cheetah_velocity", {"goal_high": 3}, 0.0, 3.0),
        ("ant_velocity", {}, 0.0, 3.0),
        ("ant_goal", {}, -3.0, 3.0),
        ("ant_direction_2d", {}, 0.0, 2 * np.pi),
        ("humanoid_direction", {}, 0.0, 2 * np.pi),
    ],
)
def test_uniform_goals(name: str, options: dict[str, Any], low: float, high: float) -> None:
    values = drawn(name, **options)
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high >= values.max() > high - 0.01 * (high - low)
    error = (high - low) / np.sqrt(12 * MANY)
    assert np.abs(values.mean(0) - (low + high) / 2).max() < 4 * error


@pytest.mark.parametrize("name", ["half_cheetah_direction", "ant_direction"])
def test_directions(name: str) -> None:
    values = drawn(name)
    assert set(values.tolist()) == {-1.0, 1.0}
    assert abs(values.mean()) < 4 / np.sqrt(MANY)


def test_goals_in_a_disc_are_uniform_by_area() -> None:
    radius = np.linalg.norm(drawn("ant_goal", region="disc", radius=2.0), axis=1)
    assert radius.max() <= 2.0
    assert abs((radius < 1.0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / MANY)


def test_faster_goals_out_of_the_distribution() -> None:
    faster = HalfCheetahVelocity(horizon=7, ctrl_cost_weight=0.0).out_of_distribution()
    assert (faster.goal_low, faster.goal_high) == (2.0, 3.0)
    assert (faster.horizon, faster.rewards.ctrl_cost_weight) == (7, 0.0)


@pytest.mark.parametrize("name", ["walker2d_random_parameters", "hopper_random_parameters"])
def test_bodies_are_scaled_and_what_follows_is_computed(name: str) -> None:
    tasks = make_distribution(name)
    task = {key: value[0] for key, value in tasks.sample(1, np.random.default_rng(0)).items()}
    changed, plain = tasks.make(task).unwrapped.model, tasks.make(tasks.example()).unwrapped.model  # type: ignore[attr-defined]
    for key, exponents in task.items():
        assert np.abs(exponents).max() > 2
        np.testing.assert_allclose(getattr(changed, key), getattr(plain, key) * 1.5 ** exponents.astype(float))
    assert changed.body_subtreemass[0] == pytest.approx(changed.body_mass.sum())
    assert plain.body_subtreemass[0] == pytest.approx(plain.body_mass.sum())
    assert changed.opt.timestep == plain.opt.timestep


def test_a_base_and_a_largest_exponent() -> None:
    tasks = HopperRandomParameters(log_scale=1.0, base=2.0)
    ones = {key: np.ones(entry.shape) for key, entry in tasks.space.items()}
    assert tasks.space["body_mass"].high.max() == 1.0  # type: ignore[attr-defined]
    model = tasks.make(ones).unwrapped.model
    np.testing.assert_allclose(model.body_mass, 2.0 * tasks.template.model.body_mass)


def test_settings_in_the_registry() -> None:
    env = gymnasium.make("metarl/AntGoal-v0", goal=(1.0, -2.0), region="disc", contact_forces=True)
    assert env.get_wrapper_attr("task")["goal"].tolist() == [1.0, -2.0]
    assert env.observation_space.shape == (29 + 78,)
    with pytest.raises(ValueError, match=r"setting must be one of .*'goal'.*got 'gaol'; did you mean 'goal'"):
        gymnasium.make("metarl/AntGoal-v0", gaol=(1, 2))
    with pytest.raises(ValueError, match="did you mean 'ant_goal'"):
        make_env("ant_gaol")


def test_bad_arguments_of_make() -> None:
    tasks = HalfCheetahDirection()
    with pytest.raises(ValueError, match=r"task\['direction'\] must have shape \(\), got \(2,\)"):
        tasks.make({"direction": np.ones(2)})
    with pytest.raises(ValueError, match=r"render_mode must be one of .*'rgb_array'"):
        tasks.make({"direction": np.ones(())}, render_mode="rgb")
    with pytest.raises(ValueError, match="episodes must be an integer"):
        tasks.make_vec({"direction": np.ones(2)}, 0)
    env = tasks.make_vec({"direction": np.ones(2)}, 1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 6\), got \(6,\)"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="reset_mask must be bool"):
        env.reset(options={"reset_mask": np.ones(2)})
    with pytest.raises(ValueError, match=r"reset option must be one of \['reset_mask'\], got 'mask'"):
        env.reset(options={"mask": np.ones(2, bool)})


def test_pictures_of_speed_over_time_and_of_paths() -> None:
    ax = Figure().subplots()
    cheetah = HalfCheetahVelocity()
    seen = cheetah.make_vec({"goal": np.ones(1)}, 1).reset(seed=0)[0]
    cheetah.plot_episode(ax, np.repeat(seen, 3, axis=0))
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), [0.0, 0.05, 0.1])
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), np.repeat(seen[0, 8], 3))  # velocity of the root along x
    cheetah.plot_task(ax, {"goal": np.array(1.5)})
    assert ax.lines[-1].get_ydata() == [1.5, 1.5]
    ant = AntGoal()
    place = ant.make_vec({"goal": np.ones((1, 2))}, 1).reset(seed=0)[0]
    ant.plot_episode(ax, place)
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), place[:, :2])


MISSING = """
import sys

class NoMujoco:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mujoco":
            raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")

sys.meta_path.insert(0, NoMujoco())
import gymnasium
from metarl import envs
from metarl.experiments import train

assert envs.make_distribution("navigation").horizon == 100
for make in (lambda: envs.make_distribution("ant_goal"), lambda: gymnasium.make("metarl/AntGoal-v0")):
    try:
        make()
    except ValueError as error:
        print(error)
try:
    train.main(["--env", "half_cheetah_velocity", "--log-dir", sys.argv[1]])
except SystemExit as end:
    print("exit code", end.code)
"""


def test_without_mujoco_one_clear_error_and_all_else_works(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", MISSING, str(tmp_path / "runs")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    message = "this needs the extra mujoco: pip install \"metarl-torch[mujoco]\" (No module named 'mujoco')"
    assert result.stdout.splitlines() == [message, message, "exit code 2"]
    assert result.stderr.splitlines() == [f"error: {message}"]
    assert not (tmp_path / "runs").exists()


RENDER = """
import sys
import numpy as np
from metarl.envs.mujoco import HalfCheetahVelocity

tasks = HalfCheetahVelocity()
print("made", file=sys.stderr)
env = tasks.make({"goal": np.array(1.0)}, render_mode="rgb_array")
env.reset(seed=0)
first = env.render()
for _ in range(10):
    env.step(np.ones(6, np.float32))
last = env.render()
print(first.shape, first.dtype, (first != last).any(), first.std() > 10)
env.close()
"""


def test_pictures_and_no_warnings(tmp_path: Path) -> None:
    """MuJoCo 4 warns of Gymnasium's half-cheetah file: nothing of it is printed or written."""
    environment = with_root(MUJOCO_GL=os.environ.get("MUJOCO_GL", "egl"))
    command = [sys.executable, "-c", RENDER]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.stderr.startswith("made\n"), result.stderr
    assert list(tmp_path.iterdir()) == []
    if result.returncode and "OpenGL" in result.stderr:
        pytest.skip(f"no OpenGL to draw with: {result.stderr.splitlines()[-1]}")
    assert result.stdout == "(480, 480, 3) uint8 True True\n", result.stderr


def test_versions_are_among_those_declared() -> None:
    assert (3, 3) <= tuple(map(int, mujoco.__version__.split(".")[:2])) < (5, 0)
