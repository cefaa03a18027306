"""A task's numbers are the same bit for bit, whatever is computed beside it; in every vector width that torch knows.

This needs matrix products that are the same in a batch of any size. MKL has such with `MKL_CBWR=AUTO,STRICT`; without
it, on some processors only to rounding.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn import functional as F

from metarl.agents import make_policy
from metarl.derivatives import gradients, hessian_vector_products, scores
from metarl.engine import Engine
from metarl.envs import make_distribution
from metarl.rl import ReinforcementLearning
from metarl.supervised.digits import digits
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import mlp
from metarl.supervised.oracle import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
from metarl.theory.logistic import (
    MARGINS,
    FreshLogistic,
    logistic_loss,
    logistic_source,
    logistic_tasks,
    random_logistic,
)
from metarl.theory.quadratics import FreshQuadratics
from metarl.types import Batch, Params, TaskSource

CAPABILITIES = ("default", "avx2", "avx512")
ROOT = Path(__file__).parents[2]
TASKS = 8


def logistic(margin: str, regulariser: str) -> FiniteSumSource:
    """Minibatches of four points, recorded: 4, 8, 16 or 32 margins at a time."""
    problem = random_logistic(np.random.default_rng(0), TASKS)._replace(margin=margin, regulariser=regulariser)
    sizes, generator = BatchSizes(4, 4, 4), torch.Generator()
    tasks = logistic_tasks(problem, batch_sizes=sizes, generator=generator)
    return logistic_source(problem, tasks)


def environments(name: str, hidden: type[nn.Module], **options: Any) -> ReinforcementLearning:
    """Recorded, as by default; the steps of 7 episodes fill no whole number of vectors."""
    tasks = make_distribution(name, horizon=5, **options)
    kwargs = {"net_arch": [9], "activation_fn": hidden}
    policy = make_policy(tasks.observation_space, tasks.action_space, seed=0, policy_kwargs=kwargs)
    return ReinforcementLearning(tasks, policy, episodes=7)


OURS: dict[str, Callable[[], TaskSource]] = {
    "logistic": lambda: logistic("logistic", "ridge"),
    "sigmoid margin": lambda: logistic("sigmoid", "bounded"),
    "fresh logistic": lambda: FreshLogistic(sizes=BatchSizes(3, 3, 3)),
    "quadratics": FreshQuadratics,
    "sinusoid": Sinusoids,
    "few-shot": lambda: FewShot(digits().train, mlp(128, ways=5, hidden=(12,)), queries=3),
    "navigation, tanh": lambda: environments("navigation", nn.Tanh),
    "navigation, relu": lambda: environments("navigation", nn.ReLU),
    "cart pole": lambda: environments("cart_pole", nn.Tanh),
    "point velocity": lambda: environments("point_velocity", nn.Tanh),
    "grid world": lambda: environments("grid_world", nn.Tanh),
}


def of_margins(size: int, seeds: int) -> list[str]:
    """The margin losses whose gradients or products differ: `seeds` problems of 8 tasks of each type, at once and in
    shares of `size`."""
    found = []
    for margin, dtype, seed in itertools.product(MARGINS, (torch.float32, torch.float64), range(seeds)):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"w": (5,), "X": (4, 5), "y": (4,), "u": (5,)}
        data = {key: torch.randn(TASKS, *shape, generator=generator, dtype=dtype) for key, shape in shapes.items()}

        def both(w: Tensor, x: Tensor, y: Tensor, u: Tensor, margin: str = margin) -> tuple[Tensor, Tensor]:
            slope = grad(lambda v: logistic_loss(margin=margin)({"w": v}, {"X": x, "y": y}))
            return slope(w), vjp(slope, w)[1](u)[0]

        whole = vmap(both)(*data.values())
        parts = [
            vmap(both)(*(x.clone() for x in part)) for part in zip(*(x.split(size) for x in data.values()), strict=True)
        ]
        if not all(
            torch.equal(torch.cat(rows), wanted) for rows, wanted in zip(zip(*parts, strict=True), whole, strict=True)
        ):
            found.append(f"{margin} {dtype} {seed}")
    return found


def theirs(params: Params, batch: Batch) -> Tensor:
    """A user's loss, of functions whose last bit depends on their place in memory."""
    hidden = F.gelu(batch["x"] @ params["w"])  # [7]
    return (F.softplus(hidden) + torch.sigmoid(hidden) * F.silu(hidden)).mean() + F.elu(params["w"]).sum()


def computed(source: TaskSource, first: int, last: int, seed: int) -> dict[str, Tensor]:
    """What tasks `first` to `last` - 1 of eight draw before and after adaptation, and its derivatives."""
    tasks: Any = source.sample(TASKS, np.random.default_rng(seed))
    if hasattr(tasks, "shard") and (first, last) != (0, TASKS):
        tasks = tasks.shard(first, last)
    w = {key: leaf.expand(last - first, *leaf.shape) for key, leaf in source.initial_params().items()}
    found: dict[str, Tensor] = {}
    for step in range(2):
        batch = tasks.draw(w, "inner")
        g = gradients(tasks, w, batch)
        h = hessian_vector_products(tasks, w, batch, g)
        found |= {f"{step} batch {key}": leaf for key, leaf in batch.items()}
        found |= {f"{step} gradient {key}": leaf for key, leaf in g.items()}
        found |= {f"{step} product {key}": leaf for key, leaf in h.items()}
        found[f"{step} score"] = scores(tasks, w, batch)
        w = {key: leaf - 0.1 * g[key] for key, leaf in w.items()}
    return found


def shared(source: TaskSource, size: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same of all eight tasks at once, and in shares of `size`."""
    with Engine().current():
        whole = computed(source, 0, TASKS, seed)
        parts = [computed(source, first, first + size, seed) for first in range(0, TASKS, size)]
    return whole, {key: torch.cat([part[key] for part in parts]) for key in whole}


def different(source: TaskSource, size: int, seed: int) -> list[str]:
    """What is not the same bit for bit."""
    whole, parts = shared(source, size, seed)
    return [key for key, wanted in whole.items() if not torch.equal(parts[key], wanted)]


def differences(size: int) -> dict[str, float]:
    """The largest difference of anything before adaptation, in units of its largest entry."""
    torch.set_num_threads(1)
    found = {}
    for name, make in OURS.items():
        whole, parts = shared(make(), size, 0)
        first = [key for key, leaf in whole.items() if key.startswith("0 ") and leaf.is_floating_point()]
        found[name] = max(
            float((parts[k] - whole[k]).abs().max() / whole[k].abs().max().clamp_min(1e-6)) for k in first
        )
    return found


def survey(sizes: list[int], seeds: int) -> dict[str, Any]:
    """All of it in this process: with which vectors, and what differs."""
    torch.set_num_threads(1)
    found = {name: [different(make(), n, seed) for n in sizes for seed in range(seeds)] for name, make in OURS.items()}
    found |= {f"margins, {n}": [of_margins(n, 4 * seeds)] for n in (4, 2, 1)}
    spreads = [spread(seed) for seed in range(20)]
    return {"capability": torch.backends.cpu.get_cpu_capability(), "different": found, "spreads": spreads}


def spread(seed: int) -> float:
    """The largest difference between a user's gradients of eight tasks at once and one by one, in units of the largest
    entry times float32's eps."""
    generator = torch.Generator().manual_seed(seed)
    w, data = ({key: torch.randn(TASKS, *shape, generator=generator)} for key, shape in (("w", (3,)), ("x", (7, 3))))
    tasks = FiniteSumTaskBatch(theirs, data)
    whole = gradients(tasks, w, data)["w"]
    rows = [slice(i, i + 1) for i in range(TASKS)]
    single = [gradients(tasks, {"w": w["w"][row].clone()}, {"x": data["x"][row].clone()})["w"] for row in rows]
    gap = (torch.cat(single) - whole).abs().max() / whole.abs().max()
    return float(gap / torch.finfo(torch.float32).eps)


def answer(requests: list[tuple[str, dict[str, str]]]) -> None:
    """Print what calls of functions of this file return, each in a fork with these environment variables: torch has not
    yet looked at them."""
    for call, variables in requests:
        if (child := os.fork()) == 0:
            os.environ.update(variables)
            print(json.dumps(eval(call)), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, call


def elsewhere(*requests: tuple[str, dict[str, str]]) -> list[Any]:
    """What the calls return in other processes; importing everything takes seconds, so one process imports for all."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | {"OMP_NUM_THREADS": "1"}
    code = "import json, sys; from tests.metarl.test_neighbours import answer; answer(json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps(requests)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def survey_all(sizes: list[int], seeds: int) -> list[tuple[str, dict[str, str]]]:
    """The requests of a survey with every vector width."""
    return [
        (f"survey({sizes}, {seeds})", {"ATEN_CPU_CAPABILITY": capability, "MKL_CBWR": "AUTO,STRICT"})
        for capability in CAPABILITIES
    ]


def check(surveys: list[dict[str, Any]]) -> None:
    """A processor that lacks a vector width takes a smaller one: then there is the same survey twice."""
    assert surveys[0]["capability"] == "DEFAULT"
    for found in surveys:
        assert set(found["different"]) > set(OURS)
        assert {name: runs for name, runs in found["different"].items() if any(runs)} == {}
        # A gradient is a sum of 7 terms, each a product of a few functions within 2 eps: about 20 eps at worst.
        assert all(ratio <= 20 for ratio in found["spreads"])
        without_vectors = found["capability"] == "DEFAULT"
        assert without_vectors or any(found["spreads"])  # so the same bits cannot be promised for a user's loss


def test_ours_are_the_same_bits_in_any_company_and_a_users_loss_to_rounding() -> None:
    """Shares of two tasks of eight; then MKL without its setting: a product of 35 rows in float32, its derivative and
    sums of those are the same to rounding."""
    *surveys, differences = elsewhere(*survey_all([2], 1), ("differences(2)", {}))
    check(surveys)
    assert set(differences) == set(OURS)
    assert max(differences.values()) < 1e-5


@pytest.mark.slow
def test_shares_of_four_and_two_with_more_seeds() -> None:
    check(elsewhere(*survey_all([4, 2], 5)))


RESUME = """
import sys
from metarl import MetaLearner
from metarl.supervised.sinusoid import Sinusoids
before, after, iterations = sys.argv[1:]
source = Sinusoids()
learner = MetaLearner.load(before, source) if before else MetaLearner(source, meta_batch_size=4)
learner.learn(int(iterations)).save(after)
"""


@pytest.mark.slow
def test_resumed_with_other_vectors_the_run_is_the_same_to_rounding(tmp_path: Path) -> None:
    """As on another processor: three iterations with one vector width, three with another, against six with one."""

    def train(capability: str, before: str, after: str, iterations: int) -> dict[str, Tensor]:
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
        paths = [str(tmp_path / before) if before else "", str(tmp_path / after)]
        subprocess.run([sys.executable, "-c", RESUME, *paths, str(iterations)], cwd=ROOT, env=environment, check=True)
        params: dict[str, Tensor] = torch.load(tmp_path / after, weights_only=True)["params"]
        return params

    straight = train("default", "", "straight", 6)
    train("default", "", "half", 3)
    for capability in CAPABILITIES:  # the last one the processor has, where it lacks one
        for key, leaf in train(capability, "half", capability, 3).items():
            torch.testing.assert_close(leaf, straight[key], rtol=1e-3, atol=1e-4)
