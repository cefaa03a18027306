"""How far each surrogate's expected second derivative is from the true one."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev

from metarl import tree
from metarl.envs.exact.enumeration import EnumeratedTaskBatch
from metarl.envs.exact.policies import TabularSoftmax
from metarl.envs.exact.tabular import two_state_problem
from metarl.experiments.reports.certify.certificates import EXACT, Certificate, relative_error
from metarl.experiments.reports.certify.problems import LAMBDA, tensors
from metarl.rl import SURROGATES
from metarl.rl.surrogates import make_surrogate
from metarl.types import Params


def certify_hessians() -> list[Certificate]:
    """The relative error of every surrogate's expected Hessian on the tabular problem."""
    tasks, task, logits = two_state_problem()
    one, point = tensors(task), torch.as_tensor(logits)
    exact = dense_hessian(lambda w: -tasks.expected_return(w, one) / tasks.horizon, point)
    rows = []
    for name in SURROGATES:
        surrogate = make_surrogate(name, LAMBDA.get(name))
        oracle = EnumeratedTaskBatch(tasks, one, TabularSoftmax(2, 2).double(), surrogate, steps=0)
        batch = tree.take(oracle.draw({"logits": point[None]}, "hessian"), 0)
        got = dense_hessian(functools.partial(oracle.loss, batch=batch), point)
        error = relative_error(got, exact)
        rows.append({"surrogate": name, "relative_error": error, "failed": name == "dice" and error > EXACT})
    return rows


def dense_hessian(loss: Callable[[Params], Tensor], logits: Tensor) -> Tensor:
    """The Hessian `[P, P]` in the flattened logits."""

    def of_flat(flat: Tensor) -> Tensor:
        return loss({"logits": flat.view_as(logits)})

    result: Tensor = jacrev(grad(of_flat))(logits.flatten())
    return result
