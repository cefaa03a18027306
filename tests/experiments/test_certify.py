"""`metarl certify`: every estimator has a row, wrong formulas fail, a broken certificate is exit code 1."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metarl.envs.exact.expected_update import Estimate
from metarl.experiments import train
from metarl.experiments.reports import certify
from metarl.experiments.reports.certify import cheetah, problems, slopes
from metarl.experiments.reports.certify.certificates import certify_sampled, judge
from metarl.experiments.reports.certify.estimators import PULLED, Estimator, enumerate_estimators
from metarl.experiments.reports.certify.problems import OBJECTIVE, PATH_PRODUCT, PRODUCT, Expectation, bandit, mdp
from metarl.outer import OUTER, options, without_particles
from metarl.rl import SURROGATES
from tests.experiments import runs


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    outcome = runs.call("reports.certify", "--quick", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def rows_of(results: dict[str, Any], section: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in results[section] if wanted.items() <= row.items()]


@pytest.mark.parametrize("section", ["bandit", "mdp"])
@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_every_update_with_every_surrogate_and_choice_of_data(
    results: dict[str, Any], outer: str, section: str
) -> None:
    for surrogate in SURROGATES:
        rows = rows_of(results, section, update=outer, surrogate=surrogate)
        if "hessian_data" in options(outer):
            assert [row["hessian_data"] for row in rows] == ["fresh", "reuse"]
        else:
            assert len(rows) == (3 if outer == "e_maml" and section == "bandit" else 1)
        for row in rows:
            assert len(row["expectation"]) == len(row["stderr"]) == len(row["targets"][PRODUCT])
            assert row["std"] > 0
            assert row["verdict"] != "not classified"


def test_nothing_failed_and_what_is_unbiased(results: dict[str, Any]) -> None:
    assert certify.failures(results) == []
    unbiased = {(row["update"], row["surrogate"], row["claim"]) for row in results["mdp"] if row["claim"]}
    independent = {(name, "dice", PATH_PRODUCT) for name in PULLED}
    assert unbiased == independent | {("e_maml", name, OBJECTIVE) for name in SURROGATES}
    claimed = {(row["surrogate"], row["hessian_data"]) for row in rows_of(results, "bandit", claim=PRODUCT)}
    assert claimed == {(name, "fresh") for name in ("ratio", "dice", "loaded_dice")}


def test_discounting_and_the_defaults_people_use(results: dict[str, Any]) -> None:
    for weights in (True, False):
        updates = {row["update"] for row in rows_of(results, "discounted", discount_weights=weights)}
        assert updates == {"maml", "hf_maml", "fo_maml", "e_maml", "lsf"}
    bounds = {"on its own episodes": {2: (0.5, 0.7), 20: (0.07, 0.15)}, "cross-fitted": {2: (0, 0.05), 20: (0, 0.05)}}
    for fit, by_episodes in bounds.items():
        for episodes, (low, high) in by_episodes.items():
            (row,) = rows_of(results, "credit", what=f"baseline linear, {fit}", episodes=episodes)
            assert low <= row["relative_error"][row["target"]] <= high
            assert rows_of(results, "credit", what=f"baseline linear, {fit}, normalised", episodes=episodes)


@pytest.mark.parametrize(
    ("outer", "surrogate", "data", "value"),
    [
        ("maml", "ratio", "fresh", -0.8640),
        ("hf_maml", "ratio", "fresh", -0.8640),
        ("e_maml", "ratio", "reuse", -1.26912),
        ("maml", "reinforce", "reuse", -1.83360),
        ("maml", "reinforce", "fresh", -2.14272),
        ("maml", "ratio", "reuse", -2.19648),
        ("fo_maml", "ratio", "", -1.44),
        ("ggs_maml", "ratio", "fresh", -0.8640),
        ("binom_maml", "dice", "fresh", -0.8640),
        ("lsf", "ratio", "reuse", -2.19648),  # on a bandit it is MAML with likelihood ratios
        ("lsf", "reinforce", "reuse", -2.19648),
        ("multitask", "ratio", "", -2.4),
    ],
)
def test_closed_forms_of_the_bandit(
    results: dict[str, Any], outer: str, surrogate: str, data: str, value: float
) -> None:
    for row in rows_of(results, "bandit", update=outer, surrogate=surrogate, hessian_data=data):
        assert row["exact"] == [pytest.approx(value, abs=1e-9)]
        assert abs(row["off_exact"]) < 4


FIGURES = {  # relative errors to the sampled objective and to the product form, deviation over inner data
    ("e_maml", "ratio", "reuse"): (0.000, 0.019, 0.5745),
    ("fo_maml", "ratio", ""): (0.018, 0.032, None),
    ("maml", "ratio", "reuse"): (0.029, 0.044, None),
    ("maml", "reinforce", "reuse"): (0.154, 0.170, 0.0567),
    ("lsf", "ratio", "reuse"): (0.016, 0.034, 0.0664),
}


@pytest.mark.parametrize(("outer", "surrogate", "data"), FIGURES)
def test_known_figures_of_the_tabular_problem(results: dict[str, Any], outer: str, surrogate: str, data: str) -> None:
    to_objective, to_product, deviation = FIGURES[outer, surrogate, data]
    (row,) = rows_of(results, "mdp", update=outer, surrogate=surrogate, hessian_data=data)
    assert row["relative_error"][OBJECTIVE] == pytest.approx(to_objective, abs=5e-4)
    assert row["relative_error"][PRODUCT] == pytest.approx(to_product, abs=5e-4)
    if deviation is not None:
        assert row["exact_std"] == pytest.approx(deviation, abs=5e-5)
    assert abs(row["off_exact"]) < 4


def test_known_errors_of_the_hessians(results: dict[str, Any]) -> None:
    found = {row["surrogate"]: row["relative_error"] for row in results["hessians"]}
    wanted = {"ratio": 0.907, "reinforce": 3.933, "dice": 0.0, "loaded_dice": 0.510}
    assert found == pytest.approx(wanted, abs=5e-4)


def test_several_steps_are_exact_for_their_targets(results: dict[str, Any]) -> None:
    assert {row["steps"] for row in results["several_steps"]} == {1, 2}
    for row in results["several_steps"]:
        errors = row["relative_error"]
        if row["claim"]:
            assert errors[row["claim"]] < 1e-9
        elif row["update"] != "binom_maml":  # its order 1 is 5e-4 off with two steps
            assert min(errors.values()) > 0.01


def test_the_slopes_of_variance_and_bias(results: dict[str, Any]) -> None:
    """Theta(n) and O(1/n), and a bias of at most O(n^(-1/2)); exact figures on the tabular problem."""
    for problem, number in (("bandit", 4), ("mdp", 3)):
        sampled, linear = (rows_of(results, "slopes", problem=problem, update=name) for name in ("e_maml", "lsf"))
        assert [row["n"] for row in sampled] == [row["n"] for row in linear]
        assert len(sampled) == number
        assert all(row["bias"] < 1e-9 for row in sampled)
        assert 0.8 < sampled[-1]["variance_slope"] < 1.2
        assert -1.3 < linear[-1]["variance_slope"] < -0.7
        assert linear[-1]["bias_slope"] < -0.5
        assert {row["verdict"] for row in (sampled[-1], linear[-1])} == {"slopes as claimed"}
    found = [row["std"] for row in rows_of(results, "slopes", problem="mdp", update="e_maml")]
    assert found == pytest.approx([0.5745, 0.8245, 1.0146], abs=5e-5)
    linear = rows_of(results, "slopes", problem="mdp", update="lsf")
    assert [row["std"] for row in linear] == pytest.approx([0.0664, 0.0517, 0.0433], abs=5e-5)
    assert [row["bias"] for row in linear] == pytest.approx([0.0045, 0.0019, 0.0011], abs=5e-5)
    assert linear[0]["target_norm"] == pytest.approx(0.2764, abs=5e-5)


def test_wrong_slopes_fail() -> None:
    rows = [{"n": n, "std": n**0.5, "bias": 0.1, "failed": False} for n in (1, 4)]
    group = [rows[0], {**rows[1], **slopes.slopes(*rows)}]
    assert slopes.judge("e_maml", [group[0], {**group[1], "bias_slope": None}])["failed"] is False
    for update in ("e_maml", "lsf"):  # the one is biased, the other's variance grows
        assert slopes.judge(update, group)["failed"]


@pytest.mark.parametrize("index", range(6))
def test_the_right_formula_passes_and_the_wrong_one_fails(results: dict[str, Any], index: int) -> None:
    right, wrong = results["wrong_formulas"][2 * index : 2 * index + 2]
    assert (right["right"], wrong["right"], right["what"]) == (True, False, wrong["what"])
    assert abs(right["bias_in_se"]) < 4
    assert abs(wrong["bias_in_se"]) > 6


def test_an_estimator_that_is_not_what_it_is_said_to_be_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "SAMPLED", ("e_maml", "fo_maml"))
    monkeypatch.setattr(problems, "bandit_expectation", lambda setting, objective, actions: None)
    row = certify_sampled(bandit(), Estimator("fo_maml", "ratio", {}), 20_000)
    assert row["failed"]
    assert "documented as unbiased for the sampled objective" in row["verdict"]
    row = certify_sampled(mdp(), Estimator("fo_maml", "ratio", {}), 100)  # here enumeration sees it
    assert row["failed"]
    assert "documented as unbiased for the sampled objective" in row["verdict"]


def test_code_that_differs_from_its_exact_expectation_fails() -> None:
    exact = Expectation(torch.tensor([0.1]))
    sample = Estimate(torch.tensor([0.0]), torch.tensor([0.01]), 1.0, 10_000)
    verdict, failed = judge("maml", None, {}, exact, sample)
    assert failed
    assert "-10.0 SE from its exact expectation" in verdict


def test_a_new_update_shows_up_unclassified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTER, "mine", OUTER["fo_maml"])
    assert len([s for s in enumerate_estimators(("none",)) if s.update == "mine"]) == len(SURROGATES)
    row = certify_sampled(mdp(), Estimator("mine", "ratio", {}), 1_000)
    assert (row["verdict"], row["failed"], row["exact"]) == ("not classified", False, None)


def test_the_page_and_its_picture(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "certify", lambda quick: results)
    outcome = runs.call("reports.certify", "--write", tmp_path / "docs" / "page.md")
    assert (outcome.code, outcome.err) == (0, "")
    text = (tmp_path / "docs" / "page.md").read_text()
    assert outcome.out == text + "\n"
    assert all(f"`{name}`" in text for name in without_particles())
    assert "| `maml` | ratio, dice, loaded_dice | fresh | -0.8" in text
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({line.count(" | ") for line in block.strip().splitlines()}) == 1
    for name in ("certificates.png", "certificates_slopes.png"):
        with Image.open(tmp_path / "docs" / "pictures" / name) as image:
            assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


@pytest.mark.parametrize("section", ["bandit", "mdp", "several_steps", "slopes", "hessians", "wrong_formulas"])
def test_exit_code_1_when_a_certificate_fails(
    results: dict[str, Any], section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy.deepcopy(results)
    broken[section][0]["failed"] = True
    monkeypatch.setattr(certify, "certify", lambda quick: broken)
    outcome = runs.call("reports.certify", "--json")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: certificates that fail: {section}: ")
    assert outcome.err.count("\n") == 1
    assert json.loads(outcome.out) == broken


def test_bad_arguments(tmp_path: Path) -> None:
    outcome = runs.call("reports.certify", "--quick", "--write", tmp_path)
    assert outcome.code == 2
    assert "write must be the path of a file" in outcome.err


def test_the_relative_deviation_of_dice_and_lvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller: DiCE is noisier where the Hessian counts, and the table has a row for each case."""
    pytest.importorskip("mujoco")
    for name, value in (("COPIES", 10), ("EPISODES", 5), ("HORIZON", 20), ("ALPHAS", (5.0,))):
        monkeypatch.setattr(cheetah, name, value)
    rows = cheetah.measure_cheetah([cheetah.untrained(0)], batches=2)
    assert [(row["alpha"], row["seed"], row["task"]) for row in rows] == [(5.0, 0, "forward"), (5.0, 0, "backward")]
    assert all(row["quotient_of_std"] > 1.5 for row in rows)
    printed = cheetah.cheetah_table(rows)
    assert printed.count("\n| ") == 3
    assert "alpha 5.0: DiCE / LVC, standard deviations: " in printed


def test_the_policy_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    for name, number in {"FINAL_TASKS": 3, "FINAL_EPISODES": 2, "EVALUATION_STEPS": 1}.items():
        monkeypatch.setattr(train, name, number)
    small = ("--iterations", 1, "--horizon", 5, "--episodes", 2, "--meta-batch-size", 2, "--eval-tasks", 2)
    for env in ("half_cheetah_direction", "navigation"):
        assert runs.call("train", "--env", env, "--name", env, "--hidden", 8, "--log-dir", tmp_path, *small).code == 0
    source, params = cheetah.trained(tmp_path / "half_cheetah_direction")
    assert source.episodes == cheetah.EPISODES
    start = source.initial_params()
    assert any(not torch.equal(params[name], leaf) for name, leaf in start.items())
    outcome = runs.call("reports.certify", "--cheetah", "--cheetah-run", tmp_path / "navigation")
    assert outcome.code == 2
    assert "cheetah_run must be a run on half_cheetah_direction, got" in outcome.err


def test_the_spread_of_rows() -> None:
    """Known standard deviation and length: sqrt(2^2 + 1^2) and 5."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, 2, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1.0])
    std, relative = cheetah.spread(noise + torch.tensor([3.0, 4.0]))
    assert std == pytest.approx(5**0.5, rel=0.01)
    assert relative == pytest.approx(5**0.5 / 5, rel=0.02)
    assert cheetah.spread(noise[:10] - noise[:10].mean(0))[1] == float("inf")


def test_the_page_is_not_written_with_cheetah(tmp_path: Path) -> None:
    outcome = runs.call("reports.certify", "--cheetah", "--write", tmp_path / "page.md")
    assert outcome.code == 2
    assert "write does not apply with cheetah" in outcome.err
