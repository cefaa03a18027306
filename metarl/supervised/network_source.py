"""Shared by sources of tasks for one network: its parameters, its predictions and its checks."""

from torch import Tensor, nn

from metarl.functional_call import call
from metarl.network_check import check_network, check_second_derivatives
from metarl.settings import FixedSettings
from metarl.tree import detach, float_leaf
from metarl.types import Params


class NetworkSource(FixedSettings):
    """The base of `Sinusoids` and `FewShot`; each gives example inputs of the network in `_probe`."""

    network: nn.Module

    def initial_params(self) -> Params:
        """A copy of the network's own parameters."""
        return detach(dict(self.network.named_parameters()))

    def check_second_derivatives(self) -> None:
        """Check that the network can be differentiated twice, as exact Hessian-vector products need.

        Raises:
            ValueError: naming the layer that cannot.
        """
        check_second_derivatives("network", self.network, self._probe())

    def _predict(self, params: Params, x: Tensor) -> Tensor:
        outputs: Tensor = call(self.network, params, x)
        return outputs

    def _check_network(self, takes: str, given: str, wanted: list[int]) -> None:
        """Try the network on `_probe()`: it must return the shape `wanted`; `takes` and `given` are for messages."""
        found = list(check_network("network", self.network, self._probe(), takes).shape)
        if found != wanted:
            raise ValueError(f"network must return {wanted} for {given}, got {found}")

    def _leaf(self) -> Tensor:
        """A parameter: data have its dtype and are on its device."""
        return float_leaf(self.network.parameters())

    def _probe(self) -> Tensor:
        raise NotImplementedError
