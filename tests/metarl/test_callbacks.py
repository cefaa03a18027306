"""Callbacks: their order, what they write, and that they are closed whatever happens."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from metarl import MetaLearner
from metarl.callbacks import Callback, Checkpointing, HeldOutEvaluation, Metrics, ProgressBar
from metarl.logging import RunLog, read_metrics
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")


def make(centres: tuple[float, ...] = (1.0, 2.0)) -> MetaLearner:
    return MetaLearner(make_source(centres), inner_lr=0.1, meta_batch_size=len(centres))


def make_source(centres: tuple[float, ...]) -> FiniteSumSource:
    tasks = FiniteSumTaskBatch(lambda p, b: (p["w"] - b["c"]) ** 2, {"c": torch.tensor(centres)})
    return FiniteSumSource(tasks, {"w": torch.tensor(0.0)})


class Note(Callback):
    """Writes down when it was called; may raise."""

    def __init__(self, name: str, notes: list[str], fail: str = "") -> None:
        self.name, self.notes, self.fail = name, notes, fail

    def note(self, event: str) -> None:
        self.notes.append(f"{self.name} {event}")
        if self.fail == event:
            raise RuntimeError(event)

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        self.note(f"start {total_iterations}")

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.note(f"iteration {learner.iterations}")

    def on_end(self, learner: MetaLearner) -> None:
        self.note("end")

    def close(self) -> None:
        self.note("close")


def both(event: str) -> list[str]:
    return [f"a {event}", f"b {event}"]


def test_order() -> None:
    notes: list[str] = []
    learner = make().learn(2, [Note("a", notes), Note("b", notes)])
    assert notes == [*both("start 2"), *both("iteration 1"), *both("iteration 2"), *both("end"), *both("close")]
    notes.clear()
    learner.learn(1, (Note("a", notes) for _ in range(1)))  # any iterable; the total counts what was done before
    assert notes == ["a start 3", "a iteration 3", "a end", "a close"]


@pytest.mark.parametrize(
    ("fail", "before"),
    [
        ("start 2", ["a start 2"]),
        ("iteration 1", [*both("start 2"), "a iteration 1"]),
        ("end", [*both("start 2"), *both("iteration 1"), *both("iteration 2"), "a end"]),
    ],
)
def test_closed_after_errors(fail: str, before: list[str]) -> None:
    notes: list[str] = []
    with pytest.raises(RuntimeError, match=fail):
        make().learn(2, [Note("a", notes, fail), Note("b", notes)])
    assert notes == [*before, *both("close")]


def test_closed_but_not_ended_after_a_failed_iteration() -> None:
    notes: list[str] = []
    with pytest.raises(ArithmeticError):
        make((1.0, math.nan)).learn(2, [Note("a", notes)])
    assert notes == ["a start 2", "a close"]


def test_a_callback_can_stop_and_add_to_the_metrics() -> None:
    seen: list[Metrics] = []

    class Add(Callback):
        def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
            metrics["mine/x"] = 7.0
            if learner.iterations == 2:
                learner.stop("enough")

    class See(Callback):
        def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
            seen.append(metrics)

    learner = make().learn(9, [Add(), See()])
    assert (learner.iterations, learner.stopped_by) == (2, "enough")
    assert [metrics["mine/x"] for metrics in seen] == [7.0, 7.0]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_run_log(tmp_path: Path) -> None:
    make().learn(3, [HeldOutEvaluation(every=2, num_tasks=2), RunLog(tmp_path)])
    logged = lines(tmp_path)
    assert [line["iteration"] for line in logged] == [0, 1, 2, 3]
    tensorboard = scalars(tmp_path)
    assert set(tensorboard) == {tag for line in logged for tag in line} - {"iteration"}
    for tag, points in tensorboard.items():
        wanted = [(line["iteration"], line[tag]) for line in logged if tag in line]
        assert [step for step, _ in points] == [step for step, _ in wanted]
        assert [value for _, value in points] == pytest.approx([value for _, value in wanted], rel=1e-6)
    held_out = [f"{tag}/minus_loss_step_{k}" for tag in ("eval", "eval_ci95") for k in range(4)]
    # before the first iteration, every second one, and after the last one
    assert [[tag in line for tag in held_out] for line in logged] == [[True] * 8, [False] * 8, [True] * 8, [True] * 8]
    assert set(logged[0]) == {"iteration", *held_out}
    assert [line["iteration"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert read_metrics(tmp_path, untrained=True) == logged


def test_held_out_evaluation_is_the_learners(tmp_path: Path) -> None:
    learner, other = make(), make_source((5.0, 6.0, 7.0))
    learner.learn(1, [HeldOutEvaluation(1, other, num_tasks=3, step_sizes=(0.2, None)), RunLog(tmp_path)])
    curve = learner.evaluate(other, num_tasks=3, steps=2, step_sizes=[0.2, 0.1])
    untrained, logged = lines(tmp_path)
    first = make().evaluate(other, num_tasks=3, steps=2, step_sizes=[0.2, 0.1])
    assert [untrained[f"eval/minus_loss_step_{k}"] for k in range(3)] == pytest.approx(first.mean)
    assert [logged[f"eval/minus_loss_step_{k}"] for k in range(3)] == pytest.approx(curve.mean)
    t = 4.302653  # the 97.5 % quantile of Student's t with two degrees of freedom: three tasks
    halves = t * curve.scores[0].std(0, ddof=1) / 3**0.5
    assert [logged[f"eval_ci95/minus_loss_step_{k}"] for k in range(3)] == pytest.approx(halves.tolist())


def test_a_resumed_run_logs_every_iteration_once(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "saved", tmp_path / "log"
    learner = make().learn(2, [RunLog(folder), Checkpointing(checkpoint)])
    learner.learn(2, [RunLog(folder)])  # beyond the checkpoint, and then a crash in the middle of a line
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "rollout/minus_lo')
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5
    resumed = MetaLearner.load(checkpoint, make().source)
    resumed.learn(3, [RunLog(folder)])
    assert [line["iteration"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(folder)["train/meta_grad_norm"]] == [1, 2, 3, 4, 5]


def test_a_run_that_starts_again_keeps_one_evaluation_of_the_untrained_policy(tmp_path: Path) -> None:
    for _ in range(2):  # the first one was killed before its first checkpoint
        make().learn(2, [HeldOutEvaluation(every=9, num_tasks=2), RunLog(tmp_path)])
    learner = make().learn(2)
    learner.learn(1, [HeldOutEvaluation(every=9, num_tasks=2), RunLog(tmp_path)])
    assert [line["iteration"] for line in lines(tmp_path)] == [0, 1, 2, 3]
    assert [step for step, _ in scalars(tmp_path)["eval/minus_loss_step_0"]] == [0, 2, 3]


def test_charts_and_hyperparameters(tmp_path: Path) -> None:
    log, learner = RunLog(tmp_path), make()
    learner.learn(1, [log])
    log.hyperparameters({"inner_lr": 0.1, "outer": "maml", "adapt": ()}, {"final/minus_loss_step_0": -2.0}, 1)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    plugins = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"]).session_start_info
    assert (start.hparams["inner_lr"].number_value, start.hparams["outer"].string_value) == (0.1, "maml")
    experiment = HParamsPluginData.FromString(plugins["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["final/minus_loss_step_0"]
    assert scalars(tmp_path)["final/minus_loss_step_0"] == [(1, -2.0)]
    # every chart shows what was logged, or what reinforcement learning logs
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = [chart for part in Layout.FromString(layout.tensor_proto.string_val[0]).category for chart in part.chart]
    assert {chart.title: list(chart.multiline.tag) for chart in charts}["minus_loss"] == [
        "rollout/minus_loss_before$",
        "rollout/minus_loss_after$",
    ]


@pytest.mark.parametrize("tail", ["", "{", '{"iteration": 3}', '{"iteration": 3, "x": {}', "\n"])
def test_a_last_line_that_is_not_whole_is_dropped(tmp_path: Path, tail: str) -> None:
    whole = '{"iteration": 1}\n{"iteration": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + tail)
    learner = make().learn(3)
    log = RunLog(tmp_path)
    log.on_start(learner, 4)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.on_iteration(make().learn(1), {"iteration": 1, "a": math.nan, "b": math.inf, "c": 1.0})
    log.close()
    assert lines(tmp_path) == [{"iteration": 1, "a": None, "b": None, "c": 1.0}]


def test_texts_and_figures(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {"config": "**bold**"})
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    learner = make()
    log.on_start(learner, 1)
    log.figure("paths", figure, step=3)
    log.close()
    log.close()  # twice does no harm
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "config/text_summary" in tags["tensors"]
    assert tags["images"] == ["paths"]


def test_checkpointing_every_and_at_the_end(tmp_path: Path) -> None:
    iterations: list[int] = []

    class Watch(Callback):
        def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
            path = tmp_path / "saved"
            iterations.append(MetaLearner.load(path, make().source).iterations if path.exists() else 0)

    make().learn(5, [Checkpointing(tmp_path / "saved", every=2), Watch()])
    assert iterations == [0, 2, 2, 4, 4]
    assert MetaLearner.load(tmp_path / "saved", make().source).iterations == 5


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    make().learn(3, [ProgressBar()])
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "before=" in shown
    assert "after=" in shown


@pytest.mark.parametrize(
    ("make_callback", "named"),
    [
        (lambda: Checkpointing(Path("x"), every=0), "every"),
        (lambda: HeldOutEvaluation(every=0), "every"),
        (lambda: HeldOutEvaluation(num_tasks=0), "num_tasks"),
        (lambda: HeldOutEvaluation(seed=-1), "seed"),
    ],
)
def test_bad_arguments(make_callback: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_callback()
