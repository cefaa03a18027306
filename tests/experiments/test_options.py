"""Options as name=value: read by the types of what receives them, the same words for all of them."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from metarl.envs import ENVS, constructor
from metarl.experiments.common import options
from metarl.experiments.common.run import new_folder, settle
from metarl.experiments.train import TrainConfig, build_distribution
from metarl.outer import OUTER


def receiver(
    flag: bool = True,
    count: int = 1,
    size: float = 1.0,
    word: str = "a",
    mode: Literal["none", "tasks"] = "tasks",
    threads: int | None = None,
    names: list[str] = [],  # noqa: B006 (never called)
    pair: tuple[float, int] = (0.0, 0),
    goals: Sequence[float] = (),
    untyped: Any = None,
) -> None: ...


@pytest.mark.parametrize("word", ["false", "False", "FALSE", "no", "No", "0", "off"])
@pytest.mark.parametrize("name", sorted(ENVS))
def test_every_boolean_of_every_distribution(name: str, word: str) -> None:
    """`contact_forces=False` was true."""
    make = constructor(name)
    flags = [p.name for p in inspect.signature(make, eval_str=True).parameters.values() if p.annotation is bool]
    read = options.read("env_options", [f"{flag}={word}" for flag in flags], make)
    assert read == dict.fromkeys(flags, False)


def test_a_flag_reaches_the_distribution() -> None:
    config = TrainConfig(env="ant_direction", env_options=("contact_forces=False", "terminate_when_unhealthy=yes"))
    off = build_distribution(config).observation_space.shape
    on = build_distribution(TrainConfig(env="ant_direction", env_options=("contact_forces=on",)))
    assert off == build_distribution(TrainConfig(env="ant_direction")).observation_space.shape
    assert off != on.observation_space.shape


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *((f"flag={word}", True) for word in ("true", "True", "TRUE", "yes", "1", "on")),
        ("count=3", 3),
        ("size=3", 3.0),
        ("size=1e-3", 1e-3),
        ("word=5", "5"),
        ("word=True", "True"),
        ("mode=none", "none"),
        ("threads=None", None),
        ("threads=null", None),
        ("threads=2", 2),
        ("names=a,b", ["a", "b"]),
        ('names=["a", "b"]', ["a", "b"]),
        ("pair=0.5,2", (0.5, 2)),
        ("goals=[1, 2]", (1.0, 2.0)),
        ("untyped=False", False),
        ("untyped=None", None),
        ("untyped=[1]", [1]),
        ("untyped=word", "word"),
        ("unknown=1", 1),  # which the receiver refuses
    ],
)
def test_values(entry: str, value: Any) -> None:
    (found,) = options.read("env_options", [entry], receiver).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("flag=2", "flag must be true or false, got 2"),
        ("flag=ja", "flag must be true or false, got 'ja'"),
        ("flag=", "flag must be true or false"),
        ("count=1.5", "count must be an integer, got 1.5"),
        ("count=true", "count must be an integer, got True"),
        ("size=x", "size must be a number, got 'x'"),
        ("size=True", "size must be a number, got True"),
        ("mode=task", "mode must be one of .*did you mean 'tasks'"),
        ("threads=x", "threads must be an integer or none, got 'x'"),
        ("pair=1", "pair must be a list"),
        ("goals=a,b", "goals must be a list, each member a number"),
        ("=1", "name=value"),
        ("flag", "name=value"),
    ],
)
def test_another_type_is_an_error_that_names_the_option(entry: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted) as error:
        options.read("env_options", [entry], receiver)
    assert str(error.value).startswith("env_options")


def test_an_option_given_twice() -> None:
    with pytest.raises(ValueError, match="'flag' twice"):
        options.read("env_options", ["flag=1", "flag=0"], receiver)
    with pytest.raises(ValueError, match="horizon"):
        build_distribution(TrainConfig(env_options=("horizon=5",), horizon=6))


@pytest.mark.parametrize("make", OUTER.values())
def test_the_default_of_every_outer_option_reads_as_itself(make: Callable[..., Any]) -> None:
    parameters = inspect.signature(make).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert options.read("outer_options", [f"{name}={value}" for name, value in defaults.items()], make) == defaults


@pytest.mark.parametrize("outer", ["m" * 300, "ä" * 300, "mine/method", "a b\nc"])
def test_a_run_s_default_name_is_a_folder_s(outer: str, tmp_path: Path) -> None:
    """A plug-in may call its update anything."""
    name = settle(TrainConfig(outer=outer)).name
    assert name is not None
    assert new_folder(tmp_path, name).is_dir()
    assert name.startswith("navigation-")
