"""Runs as packages: what goes in, the card, and the learner that comes out."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from metarl import AdaptationCurve, MetaLearner
from metarl.checkpoint import package
from metarl.experiments.common.config import C, commit, parse_config, read_config, read_object, versions
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.processes import Processes

CONFIG, CURVE, LEARNER, WEIGHTS, CARD = (
    "config.json",
    "evaluation.json",
    "learner.json",
    "weights.safetensors",
    "README.md",
)
PICTURES = ("adaptation.png", "trajectories.png")
MEMBERS = (package.MANIFEST, CONFIG, CURVE, LEARNER, WEIGHTS, CARD, *PICTURES)
"""Every file that a package may have."""

PRIVATE = {"log_dir": "runs", "device": "cpu", "launch": None}
"""Settings of the machine that trained, which the package does not keep."""

STATE = ("iterations", "counts", "rng")
"""What `learner.json` has of a learner's state."""

COLOURS = 64


def make_package(run: Path, learner: MetaLearner, path: Path, name: str | None = None) -> None:
    """Write a package of a finished run.

    Args:
        run: the run's folder.
        learner: of the run.
        path: a new `.zip` file, or a new folder.
        name: for the title of the card; default: the run's.

    Raises:
        ValueError: when the run is of another script or not finished, or `path` exists.
    """
    config = read_object(run / CONFIG)
    if "outer" not in config:
        raise ValueError(f"run must be one of metarl train or metarl train-supervised, got {run}")
    config = {**config, **{key: value for key, value in PRIVATE.items() if key in config}}
    config["name"] = name or config["name"]
    curve = read_curve(run, learner.iterations)
    pictures = {picture: shrink(run / picture) for picture in PICTURES if (run / picture).is_file()}
    state = learner.state_dict()
    members = {
        CONFIG: _to_json(config),
        CURVE: _to_json(curve),
        LEARNER: _to_json({name: state[name] for name in STATE}),
        WEIGHTS: package.pack_tensors(
            {f"{part}/{name}": leaf for part in ("params", "source") for name, leaf in state[part].items()}
        ),
        CARD: write_card(config, curve, learner, list(pictures), path.name).encode(),
        **pictures,
    }
    package.write(path, members, {"versions": versions(), "commit": commit()})


def read_curve(run: Path, iterations: int) -> dict[str, Any]:
    """The final evaluation in a run's folder.

    Raises:
        ValueError: when there is none, an older version wrote it, or it is that of another iteration.
    """
    try:
        curve = read_object(run / CURVE)
    except (OSError, ValueError) as error:
        raise ValueError(f"run must be finished, but {run / CURVE} cannot be read; resume {run} ({error})") from None
    try:
        for found in (curve, curve["random_init"]):
            AdaptationCurve.from_dict(found)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"run must have two adaptation curves in {run / CURVE}, which it has not ({error}); if an older version"
            f" wrote the file, remove it and resume {run}"
        ) from None
    if curve.get("iterations", iterations) != iterations:
        raise ValueError(
            f"run must be evaluated at its last checkpoint, after {iterations} iterations, but {run / CURVE} is of"
            f" {curve['iterations']}; resume {run}"
        )
    return curve


def read_any_config(kind: type[C], path: Path) -> C:
    """The settings of the run in the folder `path`, or in the package there.

    Raises:
        ValueError: when it is neither, or its settings are not those of `kind`.
    """
    if not package.is_package(path):
        return read_config(kind, path)
    members = package.read(path)
    if CONFIG not in members:
        raise ValueError(f"package {path} must have the member {CONFIG}, got {sorted(members)}")
    wanted = f"run must be a package of a run of {kind.script}; {path}/{CONFIG}"
    return parse_config(kind, _read_json(members[CONFIG], f"{path}/{CONFIG}"), wanted)


def open_package(path: Path, kind: type[C], change: Callable[[C], C], processes: Processes) -> MetaLearner:
    """The learner in a package.

    Args:
        path: a zip file or a folder.
        kind: of the configurations that are accepted.
        change: checks the configuration, and returns it with changes, before anything is imported or built.
        processes: that train together.

    Raises:
        ValueError: when the package is damaged or does not fit, naming the member.
    """
    members = processes.from_first(lambda: package.read(path))
    for name in (CONFIG, LEARNER, WEIGHTS):
        if name not in members:
            raise ValueError(f"package {path} must have the member {name}, got {sorted(members)}")
    found = {name: _read_json(members[name], f"{path}/{name}") for name in (CONFIG, LEARNER)}
    if set(found[LEARNER]) != set(STATE):
        raise ValueError(f"{path}/{LEARNER} must have the entries {list(STATE)}, got {sorted(found[LEARNER])}")
    config = change(parse_config(kind, found[CONFIG], f"{path}/{CONFIG}"))
    learner: MetaLearner = processes.together(lambda: config.build_learner(processes))
    tensors = package.unpack_tensors(members[WEIGHTS], f"{path}/{WEIGHTS}")
    weights: dict[str, dict[str, Any]] = {"params": {}, "source": {}}
    for key, leaf in tensors.items():
        part, _, name = key.partition("/")
        if part not in weights:
            raise ValueError(f"{path}/{WEIGHTS} must have names that begin with params/ or source/, got {key!r}")
        weights[part][name] = leaf
    state = {**learner.state_dict(), **found[LEARNER], **weights}
    try:
        learner.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"package {path} does not fit: {error}") from error
    return learner


def shrink(picture: Path) -> bytes:
    """The picture with at most 64 colours, as a PNG."""
    file = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


def _read_json(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {found!r:.60}")
    return found


def _to_json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# The card

HALVED = "\nSteps after those of training have half the step size."


def write_card(
    config: Mapping[str, Any], curve: Mapping[str, Any], learner: MetaLearner, pictures: list[str], file: str
) -> str:
    """The card: what was trained on what, how good it is after each step, how to load it."""
    about, score = config.get("env", config.get("problem")), learner.source.score_name.replace("_", " ")
    use = [f'learner = metarl.load("{file}")']
    if "env" in config:
        use += ["policy = learner.adapt(env, steps=1)  # your environment", "action, _ = policy.predict(observation)"]
    if config["plugins"]:
        use[0] = f'learner = metarl.load("{file}", plugins={config["plugins"]!r})  # if you trust them'
    head = ["---", "library_name: metarl", "tags:", "- meta-learning"]
    head += ["- reinforcement-learning", f"- {about}", f"- {config['outer']}", "---"]
    tasks = f"{score} on {curve['num_tasks']} held-out tasks, mean and 95 % interval over tasks"
    return "\n".join(
        [
            *head,
            f"\n# {config['name']}: {config['outer']} on {about}\n",
            f"Initial parameters that adapt to a task of `{about}` in a few gradient steps, trained with metarl.\n",
            "## How good it is\n",
            f"{tasks}:\n",
            _curve_table(curve),
            *([HALVED] if "env" in config and learner.method.learned_rule is None else []),
            *[f"\n![{picture.partition('.')[0]}]({picture})" for picture in pictures],
            "\n## Use it\n",
            *["```python", "import metarl\n", *use, "```\n"],
            "Loading executes no code. Further training starts with a fresh outer step.\n",
            "## How it was trained\n",
            _settings_table(config, learner),
        ]
    )


def _curve_table(curve: Mapping[str, Any]) -> str:
    columns = {"trained": curve, "random initialisation": curve["random_init"]}
    spent, rows = curve["costs"].get("env_steps"), []
    for k, step in enumerate(curve["steps"]):
        cells = [with_interval(c["mean"][k], c["ci95"][k], 2) for c in columns.values()]
        rows.append([str(step), *cells, *([str(spent[0][k])] if spent else [])])
    names = ["gradient steps", *columns, *(["environment steps, all tasks"] if spent else [])]
    return markdown_table(names, rows)


SKIPPED = {"versions", "commit", "device_name", "device", "processes", "launch", "log_dir", "name", "changes"}


def _settings_table(config: Mapping[str, Any], learner: MetaLearner) -> str:
    """The settings that have a value, what training took, and the versions."""
    own = {k: v for k, v in config.items() if k not in SKIPPED and v not in (None, [], ())}
    rows = [[f"`{k}`", f"`{json.dumps(v)}`"] for k, v in own.items()]
    rows += [[k.replace("_", " "), f"{v:,}"] for k, v in sorted(learner.counts.items())]
    rows += [[name, version] for name, version in config.get("versions", {}).items()]
    return markdown_table(["setting", "value"], rows) + "\n"
