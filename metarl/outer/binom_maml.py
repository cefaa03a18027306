"""Binomial MAML (BinomMAML, 2026, arXiv 2604.13263): the exact product, without the terms of more than L Hessians.

    prod_{j<N} (I - alpha H_j)  ~  I + sum_{l=1}^{L} sum_{0 <= j_1 < ... < j_l < N} prod_{i=1}^{l} (-alpha H_{j_i})

L = 0 is first-order MAML, and L >= N is exact MAML. The terms have the Hessians of the whole path, in the order of the
exact product; truncated backpropagation would forget the first steps instead. With one sum s_l for each number of
factors the pull-back of step j = N-1, ..., 0 is

    s_l <- s_l - alpha H_j s_{l-1},     l = L, ..., 1,        from  s_0 = grad f(w_N; D_o),  s_1 = ... = s_L = 0

which takes L products a step; those with zero are left out. The meta-gradient is s_0 + ... + s_L. The formula is read
from the abstract and from summaries of the paper; the recursion is ours, checked against dense products.
"""

from metarl.derivatives import hessian_vector_products
from metarl.errors import check_int
from metarl.inner import AdaptationPath, adaptation_path, has_adjoint, rule_pull_back, rules, sgd
from metarl.outer.pull_back import HessianData, check_hessian_data, outer_gradient
from metarl.outer.registry import Method, register
from metarl.tree import add
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def truncated_pull_back(
    tasks: TaskBatch, path: AdaptationPath, inner: Inner, cotangent: Params, order: int, hessian_data: HessianData
) -> Params:
    """The gradient at `w_N` pulled back to `w_0`, with the terms of at most `order` Hessians."""
    anchor, sums = path.params[0], [cotangent]  # s_0, s_1, ...; sums that are zero are not in the list
    through_anchor: list[Params] = []
    for j, rule in reversed(list(enumerate(rules(inner, len(path.params) - 1)))):
        w, g = path.params[j], path.grads[j] if path.grads else None
        # every sum through the rule, without the loss
        pulled = [rule_pull_back(rule, w, g, anchor, s) for s in sums]
        through_anchor += [to_anchor for _, _, to_anchor in pulled if to_anchor is not None]
        sums = [through_w for through_w, _, _ in pulled]
        # one Hessian more: from each sum to the next one, on the same data
        through_g = [v for _, v, _ in pulled][:order]
        if through_g:
            data = tasks.draw(w, "hessian") if hessian_data == "fresh" else path.batches[j]
            products = [hessian_vector_products(tasks, w, data, v) for v in through_g]
            joined = [add(s, product) for s, product in zip(sums[1:], products, strict=False)]
            sums = [sums[0], *joined, *products[len(joined) :]]
    total = sums[0]
    for part in [*sums[1:], *through_anchor]:
        total = add(total, part)
    return total


@register("binom_maml")
def binom_maml(
    inner_lr: float = 0.1, inner_steps: int = 3, *, order: int = 1, hessian_data: HessianData = "fresh"
) -> Method:
    """Binomial MAML; `order` is L, the most Hessians in a term. `hessian_data` is the same as for `maml`.

    With `order` 0 no D_h is drawn.

    Example, on (x - 1)^2 from x = 0, where the exact product is (1 - 0.25 * 2)^2 = 1 - 2 * 0.5 + 0.25:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> for order in (0, 1, 2):
        ...     method = binom_maml(inner_lr=0.25, inner_steps=2, order=order)
        ...     print(method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"])  # grad f(0.75) = -0.5
        tensor([-0.5000])
        tensor([0.])
        tensor([-0.1250])
    """
    check_int("order", order, minimum=0)
    hessian_data = check_hessian_data(hessian_data)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner, batches=hessian_data == "reuse", grads=not has_adjoint(inner.rule))
        end = outer_gradient(tasks, path.params[-1])
        return end._replace(grads=truncated_pull_back(tasks, path, inner, end.grads, order, hessian_data))

    twice, inner = order > 0, Inner(sgd(inner_lr), inner_steps)
    return Method(update, inner, needs_hessian=twice, differentiates_twice=twice, replays=True)
