"""`metarl reproduce` on a tiny table: runs, results, comparisons, quick runs and interruptions."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.envs.navigation import NavigationEnv
from metarl.experiments import train
from metarl.experiments.compare.jobs import Job, Message, do
from metarl.experiments.reports import reproduce
from metarl.experiments.reports.reproduce import table
from metarl.experiments.reports.reproduce.table import Reference, ReferenceRow
from tests.experiments import runs

SIZES = "--hidden 6 --eval-every 2 --eval-tasks 3 --save-every 1 --meta-batch-size 2 --episodes 2 --horizon 5"
ROWS = (
    ReferenceRow("maml", SIZES, None, 240, (0, 1)),
    ReferenceRow("large steps", f"{SIZES} --inner-lr 0.3 --outer fo_maml", None, 240, (0, 1)),
    ReferenceRow("multitask", SIZES, "multitask", 80, (0,)),
)
RL2 = ReferenceRow("rl2", SIZES.replace("horizon 5", "horizon 2"), "rl2", 3200, (0,))
TIMES = ("seconds", "cpu_seconds")


class Here:
    """Trains in this process; the names of the runs that trained. `stop_at` interrupts the nth run in an iteration."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.threads: list[int] = []
        self.stop_at: tuple[int, int] | None = None

    def __call__(self, jobs: Sequence[Job], workers: int, done: int = 0, threads: int = 1) -> None:
        self.threads.append(threads)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for number, job in enumerate(jobs):
                self.trained.append(job.name)
                message = do(job, self.listen(number))
                if message.kind == "ended":
                    raise SystemExit(message.number)
                assert message.kind == "done", message.text
        finally:
            torch.set_num_threads(before)

    def listen(self, number: int) -> Callable[[Message], None]:
        def send(message: Message) -> None:
            if self.stop_at == (number, message.number):
                os.kill(os.getpid(), signal.SIGINT)

        return send

    def take(self) -> list[str]:
        """The runs that trained since the last time."""
        found, self.trained = self.trained, []
        return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, no_pictures: None, unrecorded: None) -> Here:
    found = Here()
    monkeypatch.setattr(reproduce, "run_all", found)
    monkeypatch.setattr(train, "FINAL_TASKS", 5)
    monkeypatch.setattr(train, "FINAL_EPISODES", 2)
    set_rows(monkeypatch, *ROWS)
    return found


def set_rows(monkeypatch: pytest.MonkeyPatch, *rows: ReferenceRow) -> None:
    monkeypatch.setattr(table, "REFERENCES", {"tiny": Reference("navigation", rows)})


def call(folder: Path, *arguments: object, log_dir: str = "log") -> runs.Outcome:
    words = ("--results", folder / "results", "--log-dir", folder / log_dir)
    return runs.call("reports.reproduce", *arguments, *words)


def results(folder: Path) -> dict[str, Any]:
    """The results without the seconds."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results" / "tiny").iterdir())}
    return {stem: {key: value for key, value in whole.items() if key not in TIMES} for stem, whole in found.items()}


STEMS = ["large_steps-0", "large_steps-1", "maml-0", "maml-1", "multitask-0"]


def test_results_are_written_and_reproduced(tmp_path: Path, here: Here) -> None:
    outcome = call(tmp_path, "tiny")
    assert outcome.code == 0, outcome.err
    assert "there is no such folder, so nothing is compared" in outcome.out
    assert len(here.take()) == 5
    found = results(tmp_path)
    assert list(found) == STEMS

    maml = found["maml-0"]
    assert (maml["format"], maml["name"], maml["label"], maml["seed"]) == (1, "tiny", "maml", 0)
    assert maml["iterations"] == 4  # three draws of 2 x 2 x 5 steps each
    assert maml["env_steps"] == 240
    assert maml["gradients"] > 0
    assert (maml["axis"], maml["points"], maml["trained"]) == ("step", [0, 1, 2, 3], 1)
    assert [evaluation["iteration"] for evaluation in maml["evaluations"]] == [0, 2, 4]
    assert [evaluation["env_steps"] for evaluation in maml["evaluations"]] == [0, 120, 240]
    for evaluation in maml["evaluations"]:
        assert all(low < mean < high for mean, (low, high) in zip(evaluation["mean"], evaluation["ci95"], strict=True))
    run = tmp_path / "log" / "tiny" / "runs" / "maml-0"
    whole = json.loads((run / "evaluation.json").read_text())
    for curve, committed in ((whole, maml["final"]), (whole["random_init"], maml["random_init"])):
        assert committed["scores"] == [[pytest.approx(task, rel=1e-6) for task in curve["scores"][0]]]
        assert committed["tasks"]["goal"] == [pytest.approx(goal, rel=1e-5) for goal in curve["tasks"]["goal"]]
        assert committed["costs"]["env_steps"] == curve["costs"]["env_steps"]
    about = maml["about"]
    assert about["settings"]["hidden"] == [6]
    assert about["settings"]["seed"] == 0
    assert {"torch", "python"} <= set(about["versions"])
    assert set(about["hardware"]) == {"cpu", "cores", "device"}
    texts = [path.read_text() for path in (tmp_path / "results" / "tiny").iterdir()]
    assert not any(str(tmp_path) in text for text in texts)
    assert all(len(text) < 20_000 for text in texts)

    # all runs again, although finished ones are there
    outcome = call(tmp_path, "tiny")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("within its interval") == 5
    assert len(here.take()) == 5
    assert results(tmp_path) == found
    assert {path.name for path in (tmp_path / "log" / "tiny" / "previous").iterdir()} == set(STEMS)
    assert not (tmp_path / "log" / "tiny" / "again.json").exists()


def test_a_changed_reward_has_drifted(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ("tiny", "--rows", "maml", "multitask", "--seeds", 0)
    assert call(tmp_path, *part).code == 0
    before = results(tmp_path)
    reward = NavigationEnv.reward
    monkeypatch.setattr(NavigationEnv, "reward", lambda *given: 4 * reward(*given))
    for words in (part, (*part, "--quick")):
        outcome = call(tmp_path, *words)
        assert outcome.code == 1, outcome.out
        assert outcome.out.count("DRIFTED") == 2
        assert outcome.err == "error: 2 of 2 runs drifted: tiny/maml-0, tiny/multitask-0\n"
        assert results(tmp_path) == before
    outcome = call(tmp_path, *part, "--update")
    assert outcome.code == 0
    assert "DRIFTED" in outcome.out
    assert "2 results are updated" in outcome.out
    assert results(tmp_path) != before
    assert call(tmp_path, *part).code == 0


def test_quick_runs_are_the_beginnings(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rows(monkeypatch, *ROWS, RL2, ReferenceRow("random", SIZES, "random", 240, (0,)))
    assert call(tmp_path, "tiny", "--seeds", 0).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    here.take()
    outcome = call(tmp_path, "tiny", "--seeds", 0, "--quick")
    assert (outcome.code, outcome.err) == (0, "")
    assert "tiny/random-0: no evaluation during training to compare with" in outcome.out
    assert here.take() == ["tiny/maml-0", "tiny/large_steps-0", "tiny/multitask-0", "tiny/rl2-0"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    # the same numbers, also with the annealing of the whole run
    found = results(tmp_path)
    for stem, tag in (("maml-0", "step"), ("large_steps-0", "step"), ("multitask-0", "step"), ("rl2-0", "episode")):
        (entry,) = (one for one in found[stem]["evaluations"] if one["iteration"] == 2)
        folder = tmp_path / "log" / "tiny" / "quick" / stem
        (*_, last) = runs.lines(folder)
        assert last["iteration"] == 2 < found[stem]["iterations"]
        points = [f"eval/return_{tag}_{point}" for point in found[stem]["points"]]
        assert entry["mean"] == pytest.approx([last[point] for point in points], rel=1e-6)
        assert not (folder / "evaluation.json").exists()


def test_interrupted_and_continued_is_the_same(tmp_path: Path, here: Here) -> None:
    part = ("tiny", "--rows", "maml", "large steps", "--seeds", 0)
    assert call(tmp_path / "whole", *part).code == 0
    here.take()

    here.stop_at = (1, 2)
    assert call(tmp_path / "parts", *part).code == 130
    assert list(results(tmp_path / "parts")) == ["maml-0"]
    here.stop_at = None
    listed = call(tmp_path / "parts", *part, "--list").out
    assert ["committed" in line for line in listed.splitlines()[2:]] == [True, False]
    assert "2 of 6 iterations" in listed
    here.take()
    # the first run was interrupted when this call was made: it has a result, so all are run again ...
    assert call(tmp_path / "parts", *part, "--missing").code == 0
    assert here.take() == ["tiny/large_steps-0"]  # ... unless only the missing ones are asked for
    assert results(tmp_path / "parts") == results(tmp_path / "whole")

    # an interrupted comparison is continued, too
    here.stop_at = (1, 2)
    assert call(tmp_path / "parts", *part).code == 130
    assert here.take() == ["tiny/maml-0", "tiny/large_steps-0"]
    here.stop_at = None
    outcome = call(tmp_path / "parts", *part)
    assert outcome.code == 0
    assert here.take() == ["tiny/large_steps-0"]
    assert outcome.out.count("within its interval") == 2
    assert call(tmp_path / "parts", *part).code == 0
    assert len(here.take()) == 2


def test_missing(tmp_path: Path, here: Here) -> None:
    assert call(tmp_path, "tiny", "--rows", "maml", "--seeds", 1).code == 0
    assert here.take() == ["tiny/maml-1"]
    outcome = call(tmp_path, "tiny", "--rows", "maml", "--missing", "--jobs", 2)
    assert outcome.code == 0
    assert here.take() == ["tiny/maml-0"]
    assert call(tmp_path, "tiny", "--rows", "maml", "--missing").out == "nothing is missing\n"
    # runs at a time share the cores
    cores = len(os.sched_getaffinity(0))
    assert here.threads == [cores, max(1, cores // 2)]


def test_a_diverged_run_is_a_result(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rows(monkeypatch, ReferenceRow("maml", f"{SIZES} --learning-rate 1e30", None, 240, (0,)))
    assert call(tmp_path, "tiny").code == 0
    (found,) = results(tmp_path).values()
    assert found["final"] is None
    assert "nan" in found["diverged"].lower() or "finite" in found["diverged"].lower()
    outcome = call(tmp_path, "tiny")
    assert outcome.code == 0
    assert "within its interval\n    diverged" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "names must be one or more of tiny, got none"),
        (("tinny",), "names must be one of ['tiny'], got 'tinny'; did you mean 'tiny'?"),
        (("tiny", "tiny"), "names must"),
        (("tiny", "--rows", "mamel"), "rows must be among maml, large steps, multitask, got 'mamel'; did you mean"),
        (("tiny", "--rows", "maml", "maml"), "rows must"),
        (("tiny", "--seeds", 7), "seeds must be those of the chosen rows, which do not have 7"),
        (("tiny", "--seeds", 0, 0), "seeds must"),
        (("tiny", "--jobs", 0), "jobs must be an integer"),
        (("tiny", "--quick", "--missing"), "quick does not go together with missing"),
        (("tiny", "--quick"), "results must be the folder of the committed results, got"),
        (("--report", "--rows", "maml"), "rows and seeds do not apply with report"),
        (("--report",), "results must be the folder of the committed results, got"),
        (("tiny", "--fast"), "Unrecognized"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], line: str, tmp_path: Path, here: Here) -> None:
    outcome = call(tmp_path, *arguments)
    assert outcome.code == 2
    assert line.lower() in outcome.err.lower()
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_wrong_row_of_the_table(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, line in (("--inner-lr -1", "inner_lr"), ("--iterations 3", "iterations"), ("--outre maml", "--outre")):
        set_rows(monkeypatch, ReferenceRow("row", options))
        outcome = call(tmp_path, "tiny")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert line in outcome.err
        assert not list(tmp_path.iterdir())


def test_results_that_do_not_fit(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ("tiny", "--rows", "maml", "--seeds", 0)
    assert call(tmp_path, *part).code == 0
    path = tmp_path / "results" / "tiny" / "maml-0.json"
    good = path.read_text()
    whole = json.loads(good)
    lacking = {key: value for key, value in whole.items() if key != "points"}
    cases = {
        good[:-100]: "must be a result of metarl reproduce",
        "[]": "it must be a JSON object",
        json.dumps({**whole, "format": 0}): "its format is 0, not 1",
        json.dumps(lacking): "it lacks 'points'",
        json.dumps({**whole, "trained": 9}): "trained must be 1 with the settings",
        json.dumps({**whole, "evaluations": [{**whole["evaluations"][0], "mean": [0.0]}]}): "evaluations must have 4",
        json.dumps(
            {**whole, "final": {**whole["final"], "scores": [[[1.0]] * 5], "step_sizes": [], "costs": {}}}
        ): "final must have",
        json.dumps({**whole, "label": "large steps"}): "must be the result of tiny/maml-0, got that of tiny, large",
    }
    (tmp_path / "page.md").write_text("<!-- reproduce tiny -->\n<!-- end -->\n")
    for text, line in cases.items():
        path.write_text(text)
        for words in (part, (*part, "--quick"), ("--report", "--page", tmp_path / "page.md")):
            outcome = call(tmp_path, *words, log_dir="other")
            assert outcome.code == 2, (line, outcome)
            assert line in outcome.err or words[0] == "--report"
            assert str(path) in outcome.err
            assert outcome.err.count("\n") == 1
    path.write_text(good)
    set_rows(monkeypatch, ReferenceRow("maml", SIZES.replace("hidden 6", "hidden 7"), None, 240, (0,)))
    outcome = call(tmp_path, *part, log_dir="other")
    assert outcome.code == 2
    assert f"{path} was made with hidden=[6], and now it is [7]; --update replaces the result" in outcome.err
    assert not (tmp_path / "other").exists()
    assert call(tmp_path, *part, "--update", log_dir="other").code == 0
    assert json.loads(path.read_text())["about"]["settings"]["hidden"] == [7]
