"""Context inputs (CAVIA; Zintgraf et al., 2019): numbers that a network gets beside each input.

    output = network([x, context]),    context in R^size, zero at the start of every adaptation

With `adapt="context"` inner steps move the context alone, and the outer step the network alone.
"""

import torch
from torch import Tensor, nn

from metarl.errors import check_int, check_type


class WithContext(nn.Module):
    """A network that gets `size` more inputs, the parameter `context`, which is the same for all rows of a batch.

    It works as a policy and in supervised learning. Without `adapt="context"` it is a parameter like the others: inner
    steps adapt it, and the outer step learns where it starts.

    Args:
        network: from `[n, features + size]`; the context comes last. Its parameters get names that start with
            `network.`.
        size: numbers in the context.

    Raises:
        ValueError: for arguments that cannot work.

    Example:
        >>> from metarl import MetaLearner
        >>> from metarl.supervised.networks import mlp
        >>> from metarl.supervised.sinusoid import Sinusoids
        >>> source = Sinusoids(WithContext(mlp(1 + 5, 1, hidden=(40, 40)), 5))
        >>> learner = MetaLearner(source, "maml", inner_lr=0.1, adapt="context").learn(2)
        >>> learner.params["context"]
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        check_type("network", network, nn.Module, "a torch.nn.Module that takes `size` more inputs")
        self.network = network
        like = next(network.parameters(), torch.zeros(()))
        self.context = nn.Parameter(like.new_zeros(check_int("size", size)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's output for `x` `[n, ...]`, whose rows are taken as vectors."""
        rows = x.reshape(len(x), -1).to(self.context.dtype)
        context = self.context.expand(len(rows), -1)
        output: Tensor | tuple[Tensor, ...] = self.network(torch.cat([rows, context], 1))
        return output
