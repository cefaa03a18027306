"""Sign-MAML: the first-order gradient is the exact one, the scale of the inner loss does not matter, and its time."""

import itertools
import statistics
import time

import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.engine import Engine
from metarl.experiments.reports.theory.common import Findings, Row, label, panels
from metarl.experiments.reports.theory.numerics import POINT, TASKS, direction, numeric_error, objective
from metarl.supervised import FiniteSumTaskBatch
from metarl.theory.logistic import logistic_loss
from metarl.theory.quadratics import quadratic_loss, quadratic_tasks, quadratics_1d
from metarl.types import Batch, Params

SOURCE = "Fan, Ram, Liu 2021"
ARTEFACT = "released logs of Fan, Ram, Liu 2021"
STEPS = 5


def check(quick: bool = False) -> Findings:
    """Gradients on P2, times on a convolutional network."""
    figure, (left, right) = panels(2)
    rows = [*exact_off_the_kinks(), scale_does_not_matter(), *times(right, 2 if quick else 9)]
    draw_jumps(left)
    return Findings(
        rows,
        figure,
        "The adapted loss jumps where a coordinate of the inner gradient changes its sign; the gradient, exact between "
        "the jumps, does not see them. Times: medians of interleaved meta-gradients, 4 tasks, 5-way 1-shot, four "
        f"layers of 32 filters on 28 x 28 pixels, N = {STEPS}, nothing recorded. They depend on machine and network, "
        "so this report does not fail when they differ.",
    )


def exact_off_the_kinks() -> list[Row]:
    """The meta-gradient against finite differences of the loss after signed steps."""
    rows = []
    for steps in (1, STEPS):
        errors = {}
        for name in ("sign_maml", "fo_maml"):
            method = make_method(name, 0.02 if name == "sign_maml" else 1.0, steps)
            errors[name] = numeric_error(direction(method, TASKS)(POINT), TASKS, method.inner, 1e-5)
        claim = f"the first-order gradient is the true one, N = {steps} (P2); FO-MAML's is not"
        measured = f"{errors['sign_maml']:.1e}; {errors['fo_maml']:.2g}"
        good = errors["sign_maml"] < 1e-8 and errors["fo_maml"] > 1e-2
        rows.append(Row(claim, SOURCE, "relative error < 1e-8; > 1e-2", measured, good))
    return rows


def scale_does_not_matter() -> Row:
    """The inner loss multiplied by a constant, the outer one left as it is."""
    loss, data = logistic_loss(), TASKS.support

    def scaled(params: Params, batch: Batch) -> Tensor:
        return batch["scale"] * loss(params, batch)

    def meta_gradient(name: str, scale: float) -> Tensor:
        inner, outer = ({**data, "scale": torch.full((6,), s, dtype=torch.float64)} for s in (scale, 1.0))
        return direction(make_method(name, 0.02, 3), FiniteSumTaskBatch(scaled, inner, outer))(POINT)

    same = {
        name: all(torch.equal(meta_gradient(name, s), meta_gradient(name, 1.0)) for s in (1e-3, 3.7, 1e4))
        for name in ("sign_maml", "fo_maml")
    }
    claim = "the scale of the inner loss does not matter, bit for bit (1e-3, 3.7, 1e4); for FO-MAML it does"
    expected, measured = "equal; not equal", "; ".join("equal" if equal else "not equal" for equal in same.values())
    return Row(claim, SOURCE, expected, measured, measured == expected)


def times(ax: Axes, repetitions: int) -> list[Row]:
    """Seconds for one meta-gradient, the methods in turn."""
    tasks, params = images()
    methods = {
        "FO-MAML": make_method("fo_maml", 0.1, STEPS),
        "Sign-MAML": make_method("sign_maml", 0.0035, STEPS),
        "MAML": make_method("maml", 0.14, STEPS, hessian_data="reuse"),
    }
    # The methods take turns, so that a change of the machine's speed affects all of them.
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with Engine(record=False).current():
        for repetition, (name, method) in itertools.product(range(repetitions + 1), methods.items()):
            start = time.perf_counter()
            method.update(params, tasks, method.inner)
            if repetition > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ax.bar(list(medians), list(medians.values()), width=0.5, alpha=0.6)
    for name, values in seconds.items():
        ax.plot([name] * len(values), values, "k.", markersize=3)
    title = f"a convolutional network, N = {STEPS} (dots: repetitions)"
    label(ax, title, "", "seconds for a meta-gradient", legend=False)
    sign, maml = medians["Sign-MAML"] / medians["FO-MAML"], medians["MAML"] / medians["FO-MAML"]
    claim, expected = "Sign-MAML costs as much time as FO-MAML", "1.06 (at most 1.15)"
    return [
        Row(claim, ARTEFACT, expected, f"{sign:.2f}", sign <= 1.15, required=False),
        Row("MAML costs 2.8 times FO-MAML's time", ARTEFACT, "2.8 (2 to 3.5)", f"{maml:.2f}", 2 <= maml <= 3.5, False),
    ]


def images() -> tuple[FiniteSumTaskBatch, Params]:
    """Four 5-way 1-shot tasks of noise images, and the weights of four convolutional layers and a linear one."""
    generator = torch.Generator().manual_seed(0)

    def data() -> Batch:
        return {"x": torch.randn(4, 5, 1, 28, 28, generator=generator), "y": torch.arange(5).expand(4, 5)}

    channels = (1, 32, 32, 32, 32)
    params = {
        f"kernel_{i}": torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        for i, (into, out) in enumerate(itertools.pairwise(channels))
    }
    params["head"] = torch.randn(5, 32, generator=generator) / 32**0.5
    return FiniteSumTaskBatch(network_loss, data(), data()), params


def network_loss(params: Params, batch: Batch) -> Tensor:
    """Cross entropy of four strided convolutions, standardised over the batch, and a linear layer."""
    h = batch["x"]
    for i in range(4):
        h = torch.nn.functional.conv2d(h, params[f"kernel_{i}"], stride=2, padding=1)
        h = (h - h.mean((0, 2, 3), keepdim=True)) * (h.var((0, 2, 3), keepdim=True) + 1e-5).rsqrt()
        h = torch.relu(h)
    return torch.nn.functional.cross_entropy(h.mean((2, 3)) @ params["head"].T, batch["y"])


def draw_jumps(ax: Axes) -> None:
    """Three quadratics, query sets elsewhere: the mean loss after one signed step, and the meta-gradient."""
    curvatures = [1.0, 0.8, 0.5]
    support, query = (
        quadratic_tasks(quadratics_1d(curvatures, centres)).support for centres in ([-0.5, 0.1, 0.6], [-0.2, 0.4, 0.4])
    )
    tasks = FiniteSumTaskBatch(quadratic_loss, support, query)
    method = make_method("sign_maml", 0.25)
    after, gradient = objective(tasks, method.inner), direction(method, tasks)
    grid = torch.linspace(-1, 1.1, 211, dtype=torch.float64)
    ax.plot(grid, [float(after(w[None])) for w in grid], ".", markersize=3, label="loss after one signed step")
    ax.plot(grid, [float(gradient(w[None])) for w in grid], ".", markersize=3, label="Sign-MAML's meta-gradient")
    label(ax, "three quadratics, alpha = 0.25", "w", "")
