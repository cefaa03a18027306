"""`metarl benchmark`: whether it runs, what it prints, and its count of what a method needs."""

import json
from functools import partial
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import grad, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from metarl import MetaLearner
from metarl.derivatives import gradients, hessian_vector_products
from metarl.engine import Engine
from metarl.experiments.common.evaluation import evaluate_on
from metarl.experiments.reports import benchmark
from metarl.experiments.reports.benchmark import workloads
from metarl.experiments.reports.benchmark.growth import group_by_size
from metarl.experiments.reports.benchmark.limits import Flops, Product, Tallied, TalliedSource, Tally, network_flops
from metarl.experiments.reports.benchmark.page import markdown_page
from metarl.experiments.reports.benchmark.profile import WATCHED
from metarl.experiments.reports.benchmark.reach import GOALS
from metarl.experiments.train import TrainConfig, build_source
from metarl.functional_call import call
from metarl.outer import without_particles
from metarl.supervised.networks import conv4
from metarl.supervised.oracle import FiniteSumTaskBatch
from metarl.tree import broadcast, detach
from metarl.types import Batch, Params
from tests.experiments import runs

TASKS, POINTS = 3, 4
UPDATES = ("maml", "hf_maml", "reptile", "imaml")
WATCHED_FUNCTIONS = [resolve_name(name) for name in WATCHED]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every part, at its tiny size; for speed all in this process, and with a few updates."""
    picture = tmp_path_factory.mktemp("benchmark") / "growth.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "call_in_new_process", lambda call: call())
        patch.setattr(workloads, "without_particles", lambda: UPDATES)
        outcome = runs.call("reports.benchmark", "--quick", "--json", "--picture", picture)
    assert (outcome.code, outcome.err) == (0, "")
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_all_parts(quick: dict[str, Any]) -> None:
    found = quick["devices"]["cpu"]
    assert set(found) == {"name", *benchmark.PARTS} - {"reach"}
    names = [row["name"] for row in found["navigation"]]
    assert names == [*(f"navigation {outer}" for outer in UPDATES), "navigation maml, inner batch reused"]
    assert [row["inner_steps"] for row in found["sinusoid"]] == [1, 5]
    assert [row["name"] for row in found["conv4"]] == ["4-conv maml, all at once", "4-conv maml, as chosen"]
    rows = [row for part, rows in found.items() if part != "name" for row in rows if "ratio" in row]
    assert len(rows) == 1 + 5 + 2 + 2 + 2 + 2
    for row in rows:
        assert 0 < row["least"] <= row["seconds"] <= row["greatest"]
        assert row["memory_mb"] >= 0
        assert row["product_gflops"] > 0
        assert row["ratio"] == pytest.approx(row["seconds"] / row["limit_seconds"])


def test_every_update_is_measured() -> None:
    calls = workloads.plan_navigation(workloads.full_scale("cpu", 1))
    named = [call.args[0] for call in calls if isinstance(call, partial)]
    assert {(about["name"], about["size"]) for about in named} == {
        (f"navigation {name}", f"{tasks} x 20 x 100")
        for name in (*without_particles(), "maml, inner batch reused")
        for tasks in (20, 40)
    }


def test_what_an_iteration_takes(quick: dict[str, Any]) -> None:
    """3 tasks x 2 episodes x 5 steps a draw; a network of 8 units from 2 to 2 numbers."""
    rows = {row["name"].removeprefix("navigation "): row for row in quick["devices"]["cpu"]["navigation"]}
    assert {name: row["draws"] for name, row in rows.items() if name.startswith("maml")} == {
        "maml": 3,
        "maml, inner batch reused": 2,
    }
    forward, first = 2 * (16 + 16), 2 * 16
    gradient, product = 3 * forward - first, 8 * forward - 5 * first
    for name, needed in {
        "maml": 3 * forward + 2 * gradient + product,
        "maml, inner batch reused": 2 * forward + 2 * gradient + product,
        "hf_maml": 3 * forward + 4 * gradient,
        "reptile": 4 * forward + 3 * gradient,
        "imaml": 7 * forward + 6 * gradient + 5 * product,
    }.items():
        assert rows[name]["needed_gflop"] == pytest.approx(1e-9 * needed * 30), name
        assert rows[name]["per_second"] * rows[name]["seconds"] == pytest.approx(30 * rows[name]["draws"])


def test_mujoco(quick: dict[str, Any]) -> None:
    fresh, again, *stepping = quick["devices"]["cpu"]["mujoco"]
    for row, draws in ((fresh, 3), (again, 2)):
        assert row["draws"] == draws
        assert 0 < row["draw_seconds"] < row["seconds"]
        assert row["limit_seconds"] > draws * 30 / row["physics_per_second"] > 0
    assert [(row["env"], row["environments"]) for row in stepping] == [
        ("half_cheetah_velocity", 4),
        ("ant_velocity", 4),
    ]
    for row in stepping:
        assert all(row[name] > 0 for name in ("whole", "physics", "Sync", "Async"))
        assert row["whole / physics"] == pytest.approx(row["whole"] / row["physics"])


def test_growth(quick: dict[str, Any]) -> None:
    found = group_by_size(quick["devices"]["cpu"]["growth"])
    assert {size: [row["value"] for row in rows] for size, rows in found.items()} == {"inner steps": [1, 2]}
    assert [row["draws"] for row in found["inner steps"]] == [2, 3]


def test_peaks_are_compared_with_the_first() -> None:
    rows = [{"changed": size, "memory_mb": peak} for size, peak in (("a", 2.0), ("b", 5.0), ("a", 3.0))]
    found = {size: [row["memory_ratio"] for row in of_size] for size, of_size in group_by_size(rows).items()}
    assert found == {"a": [1.0, 1.5], "b": [1.0]}


def test_profile(quick: dict[str, Any]) -> None:
    (found,) = quick["devices"]["cpu"]["profile"]
    assert [part["part"] for part in found["parts"]] == list(WATCHED.values())
    assert all(part["seconds"] > 0 for part in found["parts"])
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert found["limit_seconds"] == pytest.approx(sum(part["limit_seconds"] for part in found["parts"]))
    assert found["operations"]
    assert all(operation["calls"] > 0 for operation in found["operations"])
    assert [resolve_name(name) for name in WATCHED] == WATCHED_FUNCTIONS  # as before


def test_page(quick: dict[str, Any]) -> None:
    text, operation = markdown_page(quick), quick["devices"]["cpu"]["profile"][0]["operations"][0]["operation"]
    cells = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    for wanted in ("navigation rollout", *(f"navigation {outer}" for outer in UPDATES), "sinusoid maml", operation):
        assert wanted in cells
    tables = [table.splitlines() for table in text.split("\n\n") if table.startswith("|")]
    assert len(tables) == 9  # two for MuJoCo, two for the profile
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_some_parts_as_a_table_in_processes_of_their_own() -> None:
    outcome = runs.call("reports.benchmark", "--quick", "--only", "rollouts")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("| navigation rollout | 3 x 2 x 5 |") == 1
    assert "maml" not in outcome.out


def test_training_stops_where_the_return_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "call_in_new_process", lambda call: call())
    outcome = runs.call("reports.benchmark", "--quick", "--json", "--only", "reach")
    assert (outcome.code, outcome.err) == (0, "")
    easy, impossible = json.loads(outcome.out)["devices"]["cpu"]["reach"]
    # an iteration draws D_in, D_h and D_o, each of 3 x 2 x 5 steps
    assert [(row["iterations"], row["env_steps"], row["reached"]) for row in (easy, impossible)] == [
        (1, 90, True),
        (2, 180, False),
    ]
    config = TrainConfig(meta_batch_size=3, episodes=2, horizon=5, hidden=(8,), eval_tasks=2)
    learner = config.build_learner().learn(1)
    assert easy["found"] == pytest.approx(evaluate_on(learner, learner.params, learner.source, 2, [None], 1000).mean[1])
    assert 0 < easy["seconds"] < 100
    for goal in GOALS:
        goal.config.build_learner()


def test_mujoco_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    others = [name for name in benchmark.PARTS if name not in ("mujoco", "reach")]
    assert benchmark.prepare(benchmark.Arguments())[0] == others
    with pytest.raises(ValueError, match="'mujoco', which needs the extra"):
        benchmark.prepare(benchmark.Arguments(only=("mujoco",)))


# ----- what is needed


class Smooth(nn.Sequential):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 5))


def counted(tasks: FiniteSumTaskBatch, params: Params, data: Batch) -> tuple[float, float]:
    """Operations of a gradient and of a Hessian-vector product as they are run, for one input."""
    one_by_one = Engine(record=False, chunk_size=1)
    with one_by_one.current(), FlopCounterMode(display=False) as gradient:
        gradients(tasks, params, data)
    with one_by_one.current(), FlopCounterMode(display=False) as product:
        hessian_vector_products(tasks, params, data, params)
    number = data["y"].numel()
    return gradient.get_total_flops() / number, product.get_total_flops() / number


def problem(network: nn.Module, *shape: int) -> tuple[FiniteSumTaskBatch, Params, Batch]:
    """Tasks for `counted`, which computes them one by one: grouped convolutions the counter cannot count."""

    def loss(params: Params, batch: Batch) -> Tensor:
        return F.cross_entropy(call(network, params, batch["x"]), batch["y"])

    data = {"x": torch.rand(TASKS, POINTS, *shape), "y": torch.randint(5, (TASKS, POINTS))}
    tasks = FiniteSumTaskBatch(
        loss,
        data,
    )
    return tasks, broadcast(detach(dict(network.named_parameters())), TASKS), data


def test_linear_layers_take_what_the_formulas_say() -> None:
    flops = network_flops(Smooth(), torch.zeros(2, 3))
    assert flops == Flops(2 * (21 + 56 + 40), 2 * 21)
    gradient, product = counted(*problem(Smooth(), 3))
    assert gradient == flops.gradient
    assert product == flops.hessian_vector_product + flops.forward  # the gradient W dy itself, which is not asked for


def test_a_hessian_vector_product_without_dead_code_is_the_formula() -> None:
    network = Smooth()
    tasks, params, data = problem(network, 3)
    one, batch = ({key: leaf[0] for key, leaf in tree.items()} for tree in (params, data))

    def product(*vector: Tensor) -> list[Tensor]:
        pull = vjp(lambda w: grad(tasks.loss)(w, batch), one)[1]
        return list(pull(dict(zip(one, vector, strict=True)))[0].values())

    graph = make_fx(product)(*one.values())
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with FlopCounterMode(display=False) as counter:
        graph(*one.values())
    flops = network_flops(network, torch.zeros(2, 3))
    assert counter.get_total_flops() == POINTS * flops.hessian_vector_product


def test_convolutions_take_what_the_formulas_say() -> None:
    network = conv4(1, 28, 5, filters=4)
    flops = network_flops(network, torch.zeros(2, 1, 28, 28))
    assert flops.first == 2 * 9 * 4 * 28 * 28
    gradient, product = counted(*problem(network, 1, 28, 28))
    assert gradient == flops.gradient
    # plus the gradient, and the W^T dy of the first layer, which torch computes although it is not used
    assert product == flops.hessian_vector_product + flops.forward + flops.first


def test_flops_of_a_policy_leave_out_its_critic() -> None:
    source = build_source(TrainConfig(hidden=(8, 6)))
    assert network_flops(source.policy, torch.zeros(2, 2)) == Flops(2 * (16 + 48 + 12), 2 * 16)


@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_a_tally_is_what_the_learner_counts(outer: str) -> None:
    tally = Tally()
    source = build_source(TrainConfig(episodes=2, horizon=3, hidden=(8,)))
    learner = MetaLearner(source, outer, meta_batch_size=3, engine=Engine(record=False))  # which begins sooner
    learner.source = TalliedSource(source, tally)
    learner.learn(1)
    assert tally.of("drawn") == tally.of("forward") == learner.counts["env_steps"]
    assert tally.draws == learner.counts["env_steps"] / 18
    for kind in ("gradients", "hessian_vector_products"):
        assert tally.of(kind) == learner.counts[kind] / 3 * 18


def test_a_tally_knows_the_sizes_of_sets() -> None:
    data = {"x": torch.rand(TASKS, POINTS, 3), "y": torch.randint(5, (TASKS, POINTS))}
    network, tally = Smooth(), Tally()
    tasks, params, support = problem(network, 3)
    query = {key: torch.cat([leaf, leaf], 1) for key, leaf in data.items()}
    tallied = Tallied(FiniteSumTaskBatch(tasks.loss, support, query), tally)
    gradients(tallied, params, tallied.draw(params, "inner"))
    gradients(tallied, params, tallied.draw(params, "outer"))
    hessian_vector_products(tallied, params, tallied.draw(params, "hessian"), params)
    assert (tally.of("gradients", "inner"), tally.of("gradients", "outer")) == (TASKS * POINTS, 2 * TASKS * POINTS)
    assert (tally.of("hessian_vector_products"), tally.of("forward")) == (TASKS * POINTS, 0)
    flops = network_flops(network, torch.zeros(2, 3))
    assert tally.flops(flops) == TASKS * POINTS * (3 * flops.gradient + flops.hessian_vector_product)


def test_rate_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on a second at each look: two looks around every batch of repetitions."""
    ticks = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    assert Product(2, 3, 4, 5).rate(torch.device("cpu")) == 2 * 2 * 3 * 4 * 5
