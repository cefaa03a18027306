"""`metarl train-supervised`: what a run leaves behind, where it converges, and that a resumed run is the same run."""

import dataclasses
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import metarl
from metarl import checkpoint
from metarl.callbacks import HeldOutEvaluation
from metarl.engine import Engine
from metarl.experiments import train_supervised
from metarl.experiments.common.outer_steps import APPLY, OPTIMIZERS
from metarl.experiments.common.problems import PROBLEMS
from metarl.experiments.common.run import new_run
from metarl.experiments.train_supervised import BatchConfig, SinusoidConfig, config_type
from metarl.learned_rules import visible
from metarl.outer import OUTER
from metarl.theory import Estimation, estimate_source
from metarl.theory.logistic import hessian_smoothness, six_logistic_tasks, smoothness
from metarl.types import Params
from tests.experiments import runs

pytestmark = pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # many default step sizes are too large

TINY = [
    *("--iterations", "2", "--meta-batch-size", "2", "--eval-every", "2", "--save-every", "1"),
    *("--eval-steps", "2", "--eval-tasks", "2", "--final-tasks", "2"),
]
IMAGES = ["--ways", "2", "--queries", "2", "--image-size", "16", "--network", "mlp", "--hidden", "8"]
CPU_ONLY = [name for name in PROBLEMS if name not in ("sinusoid", "digits", "mnist1d", "strokes", "images")]
SCORES = {"sinusoid": "minus_mse", "two_quadratics": "minus_loss", "quadratics": "minus_loss"}  # others: accuracy


def finish(folder: Path, problem: str, *arguments: object) -> Path:
    """A new tiny run in `folder`, to its end."""
    where = ("--log-dir", folder.parent, "--name", folder.name)
    outcome = runs.call("train_supervised", problem, *TINY, *arguments, *where)
    assert outcome.code == 0, outcome.err
    return folder


def resume(folder: Path, *arguments: object) -> Path:
    """Go on with a run, as another process would."""
    train_supervised.build_problem.cache_clear()
    outcome = runs.call("train_supervised", "--resume", folder, *arguments)
    assert outcome.code == 0, outcome.err
    return folder


def parameters(folder: Path) -> Params:
    params: Params = checkpoint.load(folder / "checkpoint.pt")["params"]
    return params


def evaluation(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return result


@pytest.fixture(autouse=True)
def unrecorded() -> Iterator[None]:
    """Spare the seconds that records take; every test builds its problems anew."""
    train_supervised.build_problem.cache_clear()
    with Engine(record=False).current():
        yield
    train_supervised.build_problem.cache_clear()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of drawing; empty pictures are written."""
    for name in ("adaptation_figure", "plot"):
        monkeypatch.setattr(train_supervised, name, lambda *_, **__: Figure())


@pytest.fixture
def rough_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare most of the products that an estimate of L and rho takes."""
    rough = partial(estimate_source, estimation=Estimation(iterations=2, pairs=1, draws=2))
    monkeypatch.setattr(train_supervised, "estimate_source", rough)


def draw_classes(folder: Path, parts: dict[str, str]) -> str:
    """Three images of noise for each of the classes, in a folder for each part."""
    rng = np.random.default_rng(0)
    for part, names in parts.items():
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw_classes(tmp_path_factory.mktemp("pictures"), {"train": "abc", "val": "de", "test": "fg"})


# What a run leaves behind.


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem(tmp_path: Path, problem: str, pictures: str) -> None:
    settings = [*IMAGES, "--data", pictures] if problem == "images" else []
    folder = finish(tmp_path / "run", problem, *settings)
    score = SCORES.get(problem, "accuracy")
    always = {
        *("iteration", f"rollout/{score}_before", f"rollout/{score}_after", "time/iteration_seconds"),
        *("train/meta_grad_norm", "train/meta_grad_spread", "train/learning_rate", "train/inner_lr"),
        *(f"train/{side}_{what}" for side in ("inner", "outer") for what in ("loss", "grad_norm")),
        *(f"rollout/{score}_gain", "time/sampling_seconds", "time/learning_seconds", "time/iteration_cpu_seconds"),
        *("oracle/gradients", "oracle/hessian_vector_products", "oracle/samples"),
        *("theory/L", "theory/alpha_L"),  # also in the first iteration
    }
    looked_at = {
        *(f"{tag}/{score}_step_{k}" for tag in ("eval", "eval_ci95") for k in range(3)),
        *("theory/grad_norm", "theory/loss_after", f"theory/{score}_after"),
        *(f"theory/distance_{name}" for name in ("maml", "fo_maml", "moreau") if "quadratics" in problem),
    }
    first, last = lines = runs.lines(folder)
    assert (set(first), set(last)) == (always, always | looked_at)
    assert all(isinstance(value, int | float) for line in lines for value in line.values())
    spent = ("iteration", "oracle/gradients", "oracle/hessian_vector_products")
    assert [[line[key] for key in spent] for line in lines] == [[1, 4, 2], [2, 8, 4]]  # of two tasks
    assert last["oracle/samples"] == 2 * first["oracle/samples"]

    config = json.loads((folder / "config.json").read_text())
    assert (config["problem"], config["iterations"], config["meta_batch_size"]) == (problem, 2, 2)
    assert runs.saved(folder)["iterations"] == 2
    found = evaluation(folder)
    assert (found["problem"], found["score"], found["num_tasks"], found["iterations"]) == (problem, score, 2, 2)
    assert len(found["mean"]) == len(found["random_init"]["mean"]) == 3
    assert found["theory"] == {k.removeprefix("theory/"): v for k, v in last.items() if k.startswith("theory/")}
    assert found["counts"] == {k.removeprefix("oracle/"): v for k, v in last.items() if k.startswith("oracle/")}

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    assert set(log.Tags()["scalars"]) == set(last) - {"iteration"} | {f"final/{score}_step_{k}" for k in range(3)}
    assert set(log.Tags()["images"]) == {"figures/adaptation", "figures/stationarity"}
    for tag in log.Tags()["scalars"]:
        written = {event.step: event.value for event in log.Scalars(tag)}
        if not tag.startswith("final/"):
            logged = runs.lines(folder, untrained=True)
            assert written == pytest.approx({line["iteration"]: line[tag] for line in logged if tag in line})
    for name in ("adaptation", "stationarity"):
        with Image.open(folder / f"{name}.png") as image:
            image.verify()


def test_pictures_are_not_blank(tmp_path: Path) -> None:
    folder = finish(tmp_path / "run", "two_quadratics")
    for name in ("adaptation", "stationarity"):
        with Image.open(folder / f"{name}.png") as image:
            colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        assert colours is not None
        assert len(colours) > 50


def test_without_looking_there_is_no_picture_of_stationarity(tmp_path: Path) -> None:
    folder = finish(tmp_path / "run", "two_quadratics", "--eval-every", 3, "--eval-steps", 0)
    assert (folder / "adaptation.png").exists()
    assert not (folder / "stationarity.png").exists()
    assert len(evaluation(folder)["mean"]) == 1
    assert not any("theory/grad_norm" in line for line in runs.lines(folder))


@pytest.mark.usefixtures("no_pictures")
def test_json_is_one_object_and_the_evaluation(tmp_path: Path) -> None:
    arguments = ["six_logistic", *TINY, "--log-dir", tmp_path, "--name", "run"]
    outcome = runs.call("train_supervised", *arguments, "--json")
    assert outcome.code == 0
    assert outcome.out.count("\n") == 1
    assert json.loads(outcome.out) == evaluation(tmp_path / "run")
    assert f"{tmp_path / 'run'}: maml on six_logistic, 2 iterations to go" in outcome.err


@pytest.mark.usefixtures("no_pictures")
def test_table(tmp_path: Path) -> None:
    outcome = runs.call("train_supervised", "six_logistic", *TINY, "--log-dir", tmp_path, "--name", "run")
    found = evaluation(tmp_path / "run")
    lines = outcome.out.splitlines()
    assert lines[1] == "accuracy on 2 held-out tasks, mean and 95 % interval over tasks"
    for step in range(3):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", lines[4 + step])]
        wanted = [step]
        for row in (found, found["random_init"]):
            wanted += [row["mean"][step], *row["ci95"][step]]
        assert numbers == pytest.approx(wanted, abs=5.1e-5)
    assert f"grad_norm: {found['theory']['grad_norm']:.3g}" in lines
    assert f"samples: {2 * 2 * 3 * 40}" in lines  # iterations, tasks, batches, points
    assert lines[-1].endswith(f"results are in {tmp_path / 'run'}")


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """With traces; what theory says against alpha is one line and names no file of ours."""
    options = [*TINY, "--outer", "multi_step_maml", "--log-dir", tmp_path, "--name", "run", "--json"]
    process = runs.start("train_supervised", "two_quadratics", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out) == evaluation(tmp_path / "run")
    (warning,) = (line for line in err.splitlines() if "theory" in line)
    assert re.fullmatch(r"warning: inner_lr = 0\.25 with L = 2 makes alpha L = 0\.5, but .*", warning)
    assert ".py" not in err


@pytest.mark.usefixtures("no_pictures")
def test_a_problem_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are decoded once."""
    entry = PROBLEMS["two_quadratics"]
    times = []

    def counting(*arguments: Any) -> Any:
        times.append(1)
        return entry.build(*arguments)

    monkeypatch.setitem(PROBLEMS, "two_quadratics", entry._replace(build=counting))
    finish(tmp_path / "run", "two_quadratics")
    assert len(times) == 1


# Settings arrive.


@pytest.mark.usefixtures("no_pictures")
def test_evaluations_take_eval_shots(tmp_path: Path) -> None:
    """A step of adaptation takes the evaluation's shots of each task; training its own."""
    folder = finish(tmp_path / "run", "sinusoid", "--shots", 7, "--queries", 9, "--eval-shots", 3)
    assert evaluation(folder)["costs"]["samples"] == [[0, 2 * 3, 2 * 2 * 3]]
    assert runs.lines(folder)[0]["oracle/samples"] == 2 * (7 + 9 + 7)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("problem", "held_out", "final"),
    [("two_quadratics", 2, 2), ("six_logistic", 6, 5), ("sinusoid", 150, 5)],
)
def test_numbers_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str, held_out: int, final: int
) -> None:
    """What is asked for, and at most all of a fixed set."""
    asked = []

    class Noting(HeldOutEvaluation):
        def __init__(self, every: int, source: Any, num_tasks: int, *arguments: Any) -> None:
            super().__init__(every, source, num_tasks, *arguments)
            asked.append(num_tasks)

    monkeypatch.setattr(train_supervised, "HeldOutEvaluation", Noting)
    folder = finish(tmp_path / "run", problem, "--eval-tasks", 150, "--final-tasks", 5)
    assert asked == [held_out]
    assert evaluation(folder)["num_tasks"] == final


@pytest.mark.usefixtures("no_pictures")
def test_minibatches_and_resampling_arrive(tmp_path: Path) -> None:
    sizes = ["--inner-batch", 3, "--outer-batch", 4, "--hessian-batch", 5]
    for name, setting in (("a", "finite_sum"), ("b", "resampling")):
        folder = finish(tmp_path / name, "logistic", "--setting", setting, *sizes)
        assert runs.lines(folder)[0]["oracle/samples"] == 2 * (3 + 4 + 5)


def test_defaults_that_suit_the_problem_are_written_down() -> None:
    def settled(**settings: Any) -> tuple[object, ...]:
        config = config_type(settings["problem"])(**settings).settle()
        return config.meta_batch_size, config.inner_lr, config.outer_step, config.learning_rate

    assert settled(problem="six_logistic") == (6, 0.95, "sgd", 0.5)
    assert settled(problem="six_logistic", outer="sign_maml") == (6, 0.02, "sgd", 0.5)
    assert settled(problem="sinusoid") == (25, 0.01, "adam", 1e-3)
    assert settled(problem="sinusoid", inner_lr=0.1, meta_batch_size=3) == (3, 0.1, "adam", 1e-3)
    assert settled(problem="quadratics", outer_step="fallah") == (20, 0.25, "fallah", None)
    assert settled(problem="quadratics", outer_step="adam", learning_rate=2.0) == (20, 0.25, "adam", 2.0)


def test_small_problems_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes it for them; another device would be ignored, so it is an error."""
    for problem in PROBLEMS:
        assert config_type(problem)(problem=problem, device="auto").settle().device == (
            "cpu" if problem in CPU_ONLY else "auto"
        )
    monkeypatch.setattr("metarl.experiments.train_supervised.pick_device", torch.device)
    for problem in CPU_ONLY:
        with pytest.raises(ValueError, match=f"device must be 'cpu' for the problem '{problem}', got 'cuda'"):
            train_supervised.build_problem(config_type(problem)(problem=problem, device="cuda"))
    built = train_supervised.build_problem(SinusoidConfig(problem="sinusoid", device="meta"))
    assert {leaf.device.type for leaf in built.train.initial_params().values()} == {"meta"}


# How w moves.

WITHOUT_ALPHA = ("--step-options", "hyper_lr_alpha=0")
META_GRADIENT = -1 / 32  # of MAML at w = 0: the mean of a (1 - alpha a)^2 (0 - c), for a = 1, 2 and c = 1, -1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("settings", "w"),
    [
        (["--outer-step", "sgd"], -0.2 * META_GRADIENT),
        (["--outer-step", "sgd", "--learning-rate", 0.5], -0.5 * META_GRADIENT),
        (["--outer-step", "sgd", "--max-grad-norm", 0.01], 0.2 * 0.01),
        (["--outer-step", "adam"], 0.2),  # its first step is the sign's
        (["--outer-step", "alpha_maml", *WITHOUT_ALPHA, "--learning-rate", 0.5], -0.5 * META_GRADIENT),
        (["--outer-step", "fallah"], -META_GRADIENT / (12 * 4 * 2)),  # 1/12 / (4 L), as rho = 0
        (["--outer-step", "ji"], -META_GRADIENT / (80 * 1.5**2 * 2)),  # 1/80 / ((1 + alpha L)^2 L)
        (["--outer-step", "fallah", "--outer", "fo_maml"], 1 / 8 / (18 * 4 * 2)),  # mean of a (1 - alpha a) c: -1/8
    ],
)
def test_first_step_by_hand(tmp_path: Path, settings: list[object], w: float) -> None:
    sign = -1 if "fo_maml" in settings else 1
    folder = finish(tmp_path / "run", "two_quadratics", *settings, "--iterations", 1)
    assert parameters(folder)["w"].item() == pytest.approx(sign * w, rel=1e-4)  # clipping adds 1e-6 to the norm


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("tasks", [2, 6])
def test_theory_step_size_by_hand(tmp_path: Path, tasks: int) -> None:
    """With all six tasks in B', or some of them: `beta = 1/12 / (4 L + 2 rho alpha mean |g|)`."""
    settings = ["--outer-step", "fallah", "--inner-lr", 0.5, "--step-tasks", tasks, "--iterations", 1]
    line = runs.lines(finish(tmp_path / "run", "six_logistic", *settings))[0]
    problem = six_logistic_tasks()
    norms = (problem.y[:, :, None] * problem.x / 2).mean(1).norm(dim=1)  # at w = 0, where the sigmoid is 1/2
    denominators = 4 * smoothness(problem) + 2 * hessian_smoothness(problem) * 0.5 * norms
    if tasks == 6:
        assert line["train/outer_lr"] == pytest.approx(1 / 12 / float(denominators.mean()), rel=1e-9)
    assert 1 / 12 / float(denominators.max()) < line["train/outer_lr"] < 1 / 12 / float(denominators.min())
    assert line["oracle/gradients"] == 2 * 2 + tasks  # B' is counted


@pytest.mark.usefixtures("no_pictures")
def test_tasks_of_the_step_size_follow_from_the_seed(tmp_path: Path) -> None:
    settings = ["--outer-step", "fallah", "--step-tasks", 2, "--iterations", 1]
    a, b, c = (
        runs.lines(finish(tmp_path / name, "six_logistic", *settings, "--seed", seed))[0]["train/outer_lr"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a == b != c


@pytest.mark.usefixtures("no_pictures")
def test_annealing(tmp_path: Path) -> None:
    """The steps of plain descent: 1, then 0.55 of the size when annealed over two iterations."""
    settings = ["--outer-step", "sgd", "--anneal-iterations", 2]
    one, two = (
        parameters(finish(tmp_path / str(n), "two_quadratics", *settings, "--iterations", n))["w"] for n in (1, 2)
    )
    gradient = 17 / 32 * one.item() - 1 / 32  # mean of a (1 - alpha a)^2 (w - c)
    assert (two - one).item() == pytest.approx(-0.2 * 0.55 * gradient, rel=1e-9)


@pytest.mark.usefixtures("no_pictures")
def test_annealing_along_a_cosine(tmp_path: Path) -> None:
    """Three iterations have the factors 1, 0.775 and 0.325; a resumed run goes on along the curve."""
    settings = ["--anneal", "cosine", "--anneal-iterations", 3, "--learning-rate", 0.1]
    folder = finish(tmp_path / "run", "two_quadratics", *settings, "--iterations", 1)
    resume(folder, "--iterations", 3)
    rates = [line["train/learning_rate"] for line in runs.lines(folder)]
    assert rates == pytest.approx([0.1, 0.0775, 0.0325])
    assert runs.saved(folder)["config"]["schedule"] == {"name": "cosine", "iterations": 3, "end": 0.1}


@pytest.mark.usefixtures("no_pictures", "rough_constants")
@pytest.mark.parametrize("outer_step", [step for step in APPLY if step not in ("proximal", "trust_region")])  # policies
def test_every_outer_step_with_a_network(tmp_path: Path, outer_step: str) -> None:
    """L and rho are estimated."""
    own = ["--step-tasks", 2] if "step_tasks" in APPLY[outer_step] else []
    own += ["--learn-inner-lr", "layer"] if outer_step == "alpha_maml" else []
    folder = finish(tmp_path / "run", "sinusoid", "--outer-step", outer_step, *own)
    lines = runs.lines(folder)
    assert all(("train/outer_lr" in line) == (outer_step not in OPTIMIZERS) for line in lines)
    assert all(leaf.isfinite().all() for leaf in parameters(folder).values())


# Where runs end.


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("outer", "settings", "point", "w"),
    [  # worked out by hand: M_1 (w - 1) + M_2 (w + 1) = 0; the step sizes are near 2 / (M_1 + M_2)
        ("maml", ["--learning-rate", 1.7], "maml", 1 / 17),
        ("hf_maml", ["--learning-rate", 1.7], "maml", 1 / 17),
        ("e_maml", ["--learning-rate", 1.7], "maml", 1 / 17),
        ("multi_step_maml", ["--learning-rate", 9], "maml", (0.75**6 - 2 / 64) / (0.75**6 + 2 / 64)),  # its three steps
        ("fo_maml", ["--learning-rate", 1.1], "fo_maml", -1 / 7),
        ("fo_maml", ["--learning-rate", 1.7, "--inner-steps", 2], "fo_maml", (0.75**2 - 0.5) / (0.75**2 + 0.5)),
        ("moreau", ["--learning-rate", 0.9, "--inner-steps", 30], "moreau", -1 / 4),
    ],
)
def test_the_distance_to_its_own_point_vanishes(
    tmp_path: Path, outer: str, settings: list[object], point: str, w: float
) -> None:
    few = ["--iterations", 12, "--eval-every", 4, "--eval-steps", 0]
    folder = finish(tmp_path / "run", "two_quadratics", "--outer", outer, *settings, *few)
    assert parameters(folder)["w"].item() == pytest.approx(w, abs=1e-8)
    found = evaluation(folder)
    assert found["mean"] == pytest.approx([-((w - 1) ** 2 / 2 + (w + 1) ** 2) / 2])
    assert found["random_init"]["mean"] == pytest.approx([-3 / 4])  # at zero
    early, _, late = (line for line in runs.lines(folder) if "theory/grad_norm" in line)
    for name in ("maml", "fo_maml", "moreau"):
        distances = [line[f"theory/distance_{name}"] for line in (early, late)]
        if name == point:
            assert distances[1] < 1e-8
            assert distances[1] < distances[0] / 100
        else:
            assert min(distances) > 0.05
    if outer != "moreau":  # whose many steps would be MAML's as well
        assert (late["theory/grad_norm"] < 1e-8) == (point == "maml")


# Every outer update.


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("outer", OUTER)
def test_every_outer_update(tmp_path: Path, outer: str) -> None:
    folder = finish(tmp_path / "run", "sinusoid", "--outer", outer, "--eval-every", 3)
    assert [line["iteration"] for line in runs.lines(folder)] == [1, 2]
    assert evaluation(folder)["outer"] == runs.saved(folder)["config"]["outer"] == outer
    given = SinusoidConfig(problem="sinusoid", outer=outer).settle()
    start = train_supervised.build_problem(given).train.initial_params()
    found = visible(parameters(folder))
    assert {key: leaf.shape for key, leaf in found.items()} == {key: leaf.shape for key, leaf in start.items()}
    assert not any(torch.equal(leaf, start[key]) for key, leaf in found.items())


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("problem", ["sinusoid", "digits"])
def test_partial_adaptation(problem: str, tmp_path: Path) -> None:
    """A head, a context, and particles with a context; resumed, and monitored by the same method."""
    small = ("--ways", 3, "--hidden", 4) if problem == "digits" else ()
    head = finish(tmp_path / "head", problem, "--adapt", "head", *small)
    assert runs.saved(head)["config"]["adapt"] == ["head"]
    assert "theory/grad_norm" in runs.lines(head)[-1]
    context = finish(tmp_path / "context", problem, "--context-size", 2, "--inner-lr", 1, *small)
    assert not parameters(context)["context"].any()
    assert parameters(context)["network.head.weight"].any()
    loaded = metarl.load(context)
    assert loaded.method.recipe is not None
    assert loaded.method.recipe.adapt == ("context",)
    several = finish(tmp_path / "several", problem, "--context-size", 2, "--outer", "bmaml", "--particles", 3, *small)
    assert parameters(several)["context"].shape == (3, 2)
    assert not parameters(several)["context"].any()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["sinusoid", "--adapt", "haed"], ("adapt must match parameters, but 'haed'", "did you mean 'head'")),
        (["sinusoid", "--adapt", "head", "--outer", "reptile"], ("adapt does not apply to 'reptile'",)),
        (["sinusoid", "--adapt", "context"], ("adapt 'context' needs", "--context-size")),
        (["sinusoid", "--context-size", -1], ("context_size must", "-1")),
        (["digits", "--context-size", 2, "--network", "conv4"], ("context_size does not apply to network 'conv4'",)),
        (["logistic", "--adapt", "w", "--outer-step", "ji"], ("outer_step 'ji' does not apply to adapt ['w']",)),
    ],
)
def test_bad_partial_adaptation(options: list[Any], wanted: tuple[str, ...], tmp_path: Path) -> None:
    outcome = runs.call("train_supervised", *options, "--log-dir", tmp_path / "none")
    assert outcome.code == 2
    assert all(text in outcome.err for text in wanted), outcome.err
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("no_pictures")
def test_particles(tmp_path: Path) -> None:
    """bmaml's by default; an ensemble of another update; each network of each run has its own seed."""
    folder = finish(tmp_path / "bmaml", "sinusoid", "--outer", "bmaml", "--outer-options", "leader_steps=2")
    found = evaluation(folder)
    assert len(found["coverage"]) == len(found["mean"])
    assert all(0 <= share <= 1 for share in found["coverage"])
    assert {leaf.shape[0] for leaf in parameters(folder).values()} == {5}
    assert "train/particle_distance" in runs.lines(folder)[0]
    ensemble = finish(tmp_path / "ensemble", "sinusoid", "--outer", "maml", "--particles", 3)
    assert {leaf.shape[0] for leaf in parameters(ensemble).values()} == {3}
    few = finish(tmp_path / "few", "digits", "--outer", "bmaml", "--particles", 2, "--ways", 3, "--hidden", 4)
    assert {leaf.shape[0] for leaf in parameters(few).values()} == {2}
    assert "coverage" not in evaluation(few)
    starts = [
        train_supervised.build_problem(
            SinusoidConfig(problem="sinusoid", particles=2, seed=seed)
        ).train.initial_params()
        for seed in range(3)
    ]
    firsts = torch.cat([start["linear1.weight"][:, 0, 0] for start in starts])
    assert len(set(firsts.tolist())) == 6


@pytest.mark.usefixtures("no_pictures")
def test_e_maml_is_maml_with_the_inner_data_again(tmp_path: Path) -> None:
    """The data do not depend on the parameters, so there is no score term."""
    a = finish(tmp_path / "a", "six_logistic", "--outer", "e_maml", "--inner-batch", 5)
    b = finish(tmp_path / "b", "six_logistic", "--outer", "maml", "--hessian-data", "reuse", "--inner-batch", 5)
    assert runs.saved(a)["params"] == runs.saved(b)["params"]


@pytest.mark.usefixtures("no_pictures")
def test_options_reach_the_update(tmp_path: Path) -> None:
    options = ["--outer", "e_maml", "--outer-options", "baseline=trajectories", "--inner-batch", 2]
    folder = finish(tmp_path / "run", "six_logistic", *options)
    assert runs.saved(folder)["config"]["outer_options"] == {"baseline": "trajectories"}


# Going on.

RESUMED: dict[str, list[object]] = {
    "minibatches": ["six_logistic", "--inner-batch", 5, "--outer-batch", 6, "--hessian-batch", 7],
    "resampling": ["quadratics", "--setting", "resampling"],
    "sinusoid": ["sinusoid", "--shots", 3],
}


@pytest.mark.usefixtures("no_pictures", "rough_constants")
@pytest.mark.parametrize("outer_step", ["adam", "fallah", "alpha_maml"])
@pytest.mark.parametrize("what", RESUMED)
def test_resumed_equals_uninterrupted(tmp_path: Path, what: str, outer_step: str) -> None:
    shared = [*RESUMED[what], "--outer-step", outer_step, "--eval-every", 3, "--eval-steps", 1]
    shared += ["--step-tasks", 2] if outer_step == "fallah" else []
    shared += ["--learn-inner-lr", "scalar"] if outer_step == "alpha_maml" else []
    whole = finish(tmp_path / "whole", *shared, "--iterations", 6)
    train_supervised.build_problem.cache_clear()
    parts = finish(tmp_path / "parts", *shared, "--iterations", 3)
    assert runs.saved(whole)["params"] != runs.saved(parts)["params"]
    resume(parts, "--iterations", 6)
    assert runs.untimed(whole) == runs.untimed(parts)
    assert runs.saved(whole) == runs.saved(parts)
    unlike = {"run", "seconds_per_iteration"}
    a, b = ({k: v for k, v in evaluation(folder).items() if k not in unlike} for folder in (whole, parts))
    assert a == b
    assert json.loads((parts / "config.json").read_text())["iterations"] == 6


@pytest.mark.usefixtures("no_pictures")
def test_same_seed_same_numbers_other_seed_others(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    found = {name: runs.untimed(finish(tmp_path / name, "logistic", "--seed", seed)) for name, seed in seeds.items()}
    assert found["a"] == found["b"] != found["c"]


@pytest.mark.usefixtures("no_pictures")
def test_resume_without_evaluation_only_evaluates(tmp_path: Path) -> None:
    before = finish(tmp_path / "before", "six_logistic", "--outer-step", "ji")
    folder = runs.copy(before, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    resume(folder)
    assert evaluation(folder) == {**evaluation(before), "run": str(folder)}
    for name in ("metrics.jsonl", "checkpoint.pt"):
        assert (folder / name).read_bytes() == (before / name).read_bytes()


def test_a_number_that_is_none_is_one_line(tmp_path: Path) -> None:
    arguments = [*TINY, "--inner-lr", "1e200", "--log-dir", tmp_path, "--name", "run"]
    outcome = runs.call("train_supervised", "two_quadratics", *arguments)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert re.fullmatch(
        r"error: NaN or infinity in .*; the last good checkpoint is .*checkpoint\.pt; to resume: --resume .*", last
    )
    assert runs.saved(tmp_path / "run")["iterations"] == 0


# Bad command lines: exit code 2, one line, and nothing is written.

BAD: list[tuple[str, tuple[str, ...]]] = [
    ("", ("problem must", "'--log-dir'", "sinusoid")),
    ("sinusiod", ("problem must", "'sinusiod'", "did you mean 'sinusoid'")),
    ("six_logistic sinusoid", ("sinusoid",)),
    ("sinusoid --outer mamel", ("outer must", "'mamel'", "did you mean 'maml'")),
    ("sinusoid --outer-step adma", ("--outer-step", "adma")),
    ("sinusoid --setting fresh", ("--setting", "fresh")),
    ("sinusoid --outer fo_maml --hessian-data reuse", ("outer 'fo_maml'", "'hessian_data'")),
    ("sinusoid --device nonsense", ("device must", "'nonsense'")),
    ("sinusoid --plugins no_such_module", ("plugins must", "'no_such_module'")),
    ("sinusoid --name a/b", ("name must", "'a/b'")),
    ("sinusoid --name open", ("open exists", "--name", "--resume")),
    # numbers
    *(
        (f"sinusoid --{name} {value}", (name.replace("-", "_"), value))
        for name in (
            "iterations",
            "meta-batch-size",
            "eval-every",
            "eval-tasks",
            "save-every",
            "final-tasks",
            "inner-steps",
        )
        for value in ("0", "-1")
    ),
    *(
        (f"sinusoid --{name} {value}", (f"{name} must", value))
        for name in ("shots", "queries")
        for value in ("0", "-1")
    ),
    *(
        (f"sinusoid --{name} -1", (name.replace("-", "_"), "-1"))
        for name in ("seed", "eval-seed", "eval-steps", "eval-shots")
    ),
    *((f"sinusoid --{name} nan", (name.replace("-", "_"), "nan")) for name in ("inner-lr", "learning-rate")),
    ("sinusoid --seed 99999999999999999999", ("seed", "99999999999999999999")),
    ("sinusoid --anneal-iterations -1", ("anneal_iterations", "-1")),
    ("sinusoid --outer-step ji --step-tasks 0", ("step_tasks must", "got 0")),
    ("sinusoid --eval-steps many", ("--eval-steps", "many")),
    ("six_logistic --inner-batch 41", ("inner_batch must be at most 40", "got 41")),
    ("six_logistic --meta-batch-size 7", ("meta_batch_size must be at most 6", "got 7")),
    ("two_quadratics --meta-batch-size 3", ("meta_batch_size must be at most 2", "got 3")),
    ("six_logistic --outer e_maml --meta-batch-size 1", ("meta_batch_size must be at least 2", "got 1")),
    # what does not apply
    ("logistic --shots 3", ("--shots does not apply to problem 'logistic'; remove it",)),
    ("sinusoid --inner-batch=3", ("--inner-batch does not apply to problem 'sinusoid'",)),
    ("two_quadratics --setting resampling", ("--setting does not apply to problem 'two_quadratics'",)),
    ("digits --data pictures", ("--data does not apply to problem 'digits'",)),
    ("digits --rotations", ("--rotations does not apply to problem 'digits'",)),
    ("--outer maml sinusoid", ("problem must", "'--outer'")),
    ("sinusoid --problem digits", ("--problem",)),
    ("sinusoid --itrations 3", ("--itrations", "did you mean --iterations?")),
    ("sinusoid --step-tasks 3", ("step_tasks does not apply to outer step 'adam'; remove it",)),
    *(
        (f"sinusoid --outer-step {step} --{name} 1", (f"{name.replace('-', '_')} does not apply", f"'{step}'"))
        for step in ("fallah", "ji")
        for name in ("learning-rate", "max-grad-norm", "anneal-iterations")
    ),
    *(
        (f"sinusoid --outer-step {step} --step-options floor=0", ("step_options does not apply", f"'{step}'"))
        for step in ("adam", "sgd", "fallah", "ji")
    ),
    ("sinusoid --outer-step trust_region", ("--outer-step", "trust_region")),
    ("sinusoid --outer-step alpha_maml", ("hyper_lr_alpha needs", "--learn-inner-lr scalar")),
    ("sinusoid --outer-step alpha_maml --anneal-iterations 3", ("anneal_iterations does not apply", "'alpha_maml'")),
    ("sinusoid --outer-step alpha_maml --step-tasks 3", ("step_tasks does not apply", "'alpha_maml'")),
    (
        "sinusoid --outer-step alpha_maml --step-options flor=1",
        ("step_options must be some of", "did you mean 'floor'"),
    ),
    ("sinusoid --outer-step alpha_maml --step-options floor=x", ("floor must be a number or none", "got 'x'")),
    ("sinusoid --outer-step alpha_maml --step-options hyper_lr_beta=-1", ("hyper_lr_beta must", "got -1.0")),
    ("sinusoid --outer-step alpha_maml --learning-rate 0", ("learning_rate must", "got 0.0")),
    ("six_logistic --outer bmaml", ("source must have particles", "got FiniteSumSource")),
    ("six_logistic --particles 2", ("--particles does not apply to problem 'six_logistic'",)),
    ("sinusoid --particles 0", ("particles must be an integer of at least 1, got 0",)),
    ("sinusoid --outer-step fallah --outer reptile", ("outer must be one of", "'fallah'", "got 'reptile'")),
    ("sinusoid --outer-step ji --anneal cosine", ("anneal does not apply to outer step 'ji'; remove it",)),
    ("sinusoid --outer-step ji --outer maml_plus_plus", ("to learn inner step sizes", "got", "outer 'maml_plus_plus'")),
    ("sinusoid --outer-step ji --learn-inner-lr layer", ("to learn inner step sizes", "learn_inner_lr 'layer'")),
    ("sinusoid --anneal steps", ("--anneal", "steps")),
    ("sinusoid --outer-step fallah --inner-steps 2", ("inner_steps must be 1", "'fallah'", "got 2")),
    (
        "two_quadratics --outer e_maml --outer-options baseline=trajectories",
        ("D_in must have at least 2 points of a task", "got 1"),
    ),
    # images
    ("images", ("data must be a folder", "''")),
    ("images --data missing", ("data must be", "'missing'")),
    ("images --data empty", ("empty must be a folder of class folders",)),
    ("images --data pictures --ways 3 --queries 2", ("ways must be at most 2", "got 3")),
    ("images --data pictures --ways 2 --queries 3", ("at least 4 images, found 3",)),
    ("images --data pictures --ways 2 --queries 2 --eval-shots 2", ("eval_shots must suit the data, got 2",)),
    ("images --data pictures --ways 2 --queries 2 --image-size 15", ("image_size must", "got 15")),
    ("images --data pictures --color red", ("--color", "red")),
    # going on
    ("--resume missing", ("run must", "missing/config.json")),
    ("--resume empty", ("run must", "empty/config.json")),
    ("sinusoid --resume open", ("problem cannot change", "'six_logistic'", "got 'sinusoid'")),
    *(
        (f"--resume open --{name} {value}", (f"{name.replace('-', '_')} cannot change", f"got {found}"))
        for name, value, found in (
            ("outer", "fo_maml", "'fo_maml'"),
            ("outer-step", "adam", "'adam'"),
            ("inner-batch", "7", "7"),
            ("meta-batch-size", "3", "3"),
            ("inner-lr", "0.25", "0.25"),
            ("inner-steps", "2", "2"),
            ("seed", "1", "1"),
            ("max-grad-norm", "1", "1.0"),
            ("eval-steps", "1", "1"),
            ("final-tasks", "1", "1"),
            ("step-tasks", "1", "1"),
        )
    ),
    ("--resume adapting --learning-rate 0.5", ("learning_rate cannot change", "it is 0.3, got 0.5")),
    ("--resume open --learning-rate 0", ("learning_rate must", "got 0.0")),
    ("--resume open --anneal-iterations -1", ("anneal_iterations must", "got -1")),
    ("--resume done", ("iterations must be more than the 1 that done has, got 1",)),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs at their beginning and at their end, images, and an empty folder."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "empty").mkdir()
    draw_classes(folder / "pictures", {"train": "abc", "val": "de", "test": "fg"})
    config = BatchConfig(problem="six_logistic", inner_batch=5, iterations=1, log_dir=folder)
    new_run(dataclasses.replace(config, name="open"))
    adapts = {"outer_step": "alpha_maml", "learn_inner_lr": "scalar", "learning_rate": 0.3}
    new_run(dataclasses.replace(config, name="adapting", **adapts))
    done = new_run(dataclasses.replace(config, name="done"))
    done.learner.learn(1).save(done.folder / "checkpoint.pt")
    (done.folder / "evaluation.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("line", "wanted"), BAD, ids=[line or "nothing" for line, _ in BAD])
def test_refused(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, wanted: tuple[str, ...]
) -> None:
    def must_not_start(*_: object) -> None:
        raise AssertionError("it starts")

    site = runs.copy(template, tmp_path / "site")
    monkeypatch.setattr(train_supervised, "train", must_not_start)
    monkeypatch.chdir(site)
    before = runs.files(site)
    new = [] if "--resume" in line else ["--log-dir", site]
    outcome = runs.call("train_supervised", *line.split(), *new)
    assert runs.files(site) == before
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: .{,600}\n", outcome.err)
    assert not re.search("[─-]{4}|helptext", outcome.err)
    for part in wanted:
        assert part in outcome.err


def test_what_can_be_checked_is_checked_before_images_are_decoded(
    pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_decode(*_: object, **__: object) -> None:
        raise AssertionError("it decodes")

    monkeypatch.setattr("metarl.supervised.image_folders.decode", must_not_decode)
    for bad in ("--outer mamel", "--inner-steps 0", "--inner-lr -1", "--meta-batch-size 0", "--eval-steps -1"):
        outcome = runs.call(
            "train_supervised", "images", "--data", pictures, *IMAGES, *bad.split(), "--log-dir", tmp_path
        )
        assert outcome.code == 2
