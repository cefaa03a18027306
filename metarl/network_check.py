"""Which networks can be meta-trained: pure functions that `torch.func` can batch over tasks and differentiate.

A network runs with different parameters for every task, and its loss is evaluated again on the same data. So its output
must depend only on parameters and inputs: no statistics, no random numbers, and `vmap` must be able to batch it.
`check_network` tries that once before training and names the layer that fails.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._python_dispatch import TorchDispatchMode

from metarl.functional_call import call
from metarl.types import Params

CalledModules = list[tuple[str, nn.Module]]
"""Modules with their names, in the order of their calls."""


class NetworkError(ValueError):
    """A network that cannot be meta-trained: names the layer and a fix."""


STATISTICS = (
    "keeps running statistics, which all tasks would share and change: use nn.LayerNorm or nn.GroupNorm, or freeze the"
    " statistics with network.eval()"
)
RANDOM = "draws random numbers, so the loss is not a function of the parameters: use p=0, or network.eval()"
SPECTRAL = "changes its estimate of the norm in every forward: freeze it with network.eval(), or use weight_norm"
UNINITIALIZED = "has no parameters before it has seen an input: call the network once first"
SPARSE = "has sparse gradients, which no inner step can use: use sparse=False"
RENORMALIZED = "changes its weights in forward where they exceed max_norm: use max_norm=None"


def advice(module: nn.Module) -> str | None:
    """Why a layer that forward calls cannot be meta-trained, and a fix; `None` if it can."""
    training = module.training
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return UNINITIALIZED
    if isinstance(module, _BatchNorm | _InstanceNorm) and training and module.track_running_stats:
        return STATISTICS + (", or use track_running_stats=False" if isinstance(module, _InstanceNorm) else "")
    if isinstance(module, _DropoutNd) and training and module.p > 0:
        return RANDOM
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and training and module.dropout > 0:
        return RANDOM.replace("p=0", "dropout=0")
    if isinstance(module, nn.RReLU):  # vmap does not know it in eval() either
        return "draws random numbers, so the loss is not a function of the parameters: use nn.LeakyReLU"
    if training and (isinstance(module, _SpectralNorm) or _has_hook(module, SpectralNorm)):
        return SPECTRAL
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.sparse or module.max_norm is not None):
        return SPARSE if module.sparse else RENORMALIZED
    return None


def check_network(argument: str, network: nn.Module, inputs: Tensor, takes: str, *, rows_apart: bool = False) -> Any:
    """The outputs of `network` for `inputs` `[n, ...]`, if it can be meta-trained.

    Args:
        argument: the name of the network in messages.
        network: with its initial parameters; these and random generators do not change.
        inputs: at least two rows like its data, more with `rows_apart`.
        takes: the name of `inputs` in messages.
        rows_apart: whether each output may depend only on its own row, as an action on its observation.

    Raises:
        NetworkError: naming the layer that cannot be batched over tasks, and a fix.
    """
    used: CalledModules = []
    with torch.no_grad(), _refusal(argument, used, f"must take {takes}"):
        _check_static(argument, network)
        with _called(network, used):
            outputs = _call_pure(argument, network, used, lambda: network(inputs))
            _check_layers(argument, used)
            if rows_apart:
                used.clear()
                _check_rows(argument, outputs, network(inputs[:2]))
    if inputs.is_meta:  # meta tensors have only shapes
        return outputs
    used.clear()
    batched = "must be one that torch.func.vmap can batch over tasks"
    with _refusal(argument, used, batched), _called(network, used), _quiet():
        vmap(_gradient(network, inputs))(_two_tasks(_parameters(network)))
    return outputs


def check_second_derivatives(argument: str, network: nn.Module, inputs: Tensor) -> None:
    """Check that `network` can be differentiated twice, for exact Hessian-vector products.

    Raises:
        NetworkError: naming the layer that cannot, and a fix.
    """
    params, used = _parameters(network), CalledModules()
    wanted = (
        "must have second derivatives for this outer update: use hf_maml or a first-order method, or for attention"
        " torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    )

    def product(w: Params) -> Params:
        pull = vjp(_gradient(network, inputs), w)[1]
        products: Params = pull(w)[0]
        return products

    with _refusal(argument, used, wanted), _called(network, used), _quiet():
        vmap(product)(_two_tasks(params))


def _check_static(argument: str, network: nn.Module) -> None:
    if not any(leaf.requires_grad for leaf in network.parameters()):
        raise NetworkError(
            f"{argument} must have parameters that can be trained, got {type(network).__name__} with none"
        )
    _check_layers(argument, [pair for pair in network.named_modules() if advice(pair[1]) == UNINITIALIZED])


def _check_layers(argument: str, used: CalledModules) -> None:
    for name, module in used:
        if (reason := advice(module)) is not None:
            raise NetworkError(f"{argument} cannot be meta-trained: {_place(name, module)} {reason}")


def _check_rows(argument: str, outputs: Any, of_two: Any) -> None:
    for whole, part in zip(_tensors(outputs), _tensors(of_two), strict=True):
        if whole.ndim == 0 or not torch.allclose(whole[:2], part, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise NetworkError(
                f"{argument} must give every row its own output, but it depends on the other rows of the batch, as with"
                " batch statistics or attention without batch_first=True: use nn.LayerNorm or nn.GroupNorm"
            )


def _call_pure(argument: str, network: nn.Module, used: CalledModules, forward: Callable[[], Any]) -> Any:
    """`forward()`, if it draws no random numbers and does not change the network's state."""
    before = {name: leaf._version for name, leaf in _state(network).items()}
    with _NoRandomNumbers(argument, used):
        outputs = forward()
    if changed := [name for name, leaf in _state(network).items() if leaf._version != before.get(name)]:
        _check_layers(argument, used)
        raise NetworkError(f"{argument} must keep no state, but its forward changes {changed}")
    return outputs


class _NoRandomNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that draw random numbers before they draw."""

    def __init__(self, argument: str, used: CalledModules) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.argument, self.used = argument, used

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(func, args):
            _check_layers(self.argument, self.used)
            raise NetworkError(
                f"{self.argument} must be a function of its parameters and inputs, but its forward draws random numbers"
                f" ({func}); distributions are sampled outside"
            )
        return func(*args, **(kwargs or {}))


def _draws_nothing(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it is attention without dropout, which has the tag of random operations but draws nothing."""
    return "scaled_dot_product" in str(func) and not (len(args) > 3 and args[3] and isinstance(args[3], float))


@contextmanager
def _called(network: nn.Module, used: CalledModules) -> Iterator[None]:
    """Note the modules of `network` in `used` as they are called."""

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def append(module: nn.Module, _: Any) -> None:
            used.append((name, module))

        return append

    handles = [module.register_forward_pre_hook(note(name), prepend=True) for name, module in network.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _refusal(argument: str, used: CalledModules, wanted: str) -> Iterator[None]:
    """Turn any error of a network's code into a `ValueError` that names the layer called last."""
    try:
        yield
    except NetworkError:
        raise
    except Exception as error:
        where = f"in {_place(*used[-1])}, " if used else ""
        reason = str(error).strip().split("\n")[0]
        raise NetworkError(f"{argument} {wanted}, but: {where}{type(error).__name__}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, such as that vmap loops over an operation: this trial is small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _gradient(network: nn.Module, inputs: Tensor) -> Callable[[Params], Params]:
    """The gradient of a number that depends on every output, as a function of the parameters."""

    def curved(w: Params) -> Tensor:
        floats = [output for output in _tensors(call(network, w, inputs)) if output.is_floating_point()]
        return torch.stack([output.sin().sum() for output in floats]).sum()

    gradient: Callable[[Params], Params] = grad(curved)
    return gradient


def _parameters(network: nn.Module) -> Params:
    return {name: leaf.detach() for name, leaf in network.named_parameters() if leaf.requires_grad}


def _two_tasks(params: Params) -> Params:
    return {name: torch.stack([leaf, leaf + 0.01]) for name, leaf in params.items()}


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _tensors(outputs: Any) -> list[Tensor]:
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not found or not all(isinstance(output, Tensor) for output in found):
        raise TypeError(f"its forward must return a tensor or a tuple of tensors, got {type(outputs).__name__}")
    return found


def _has_hook(module: nn.Module, kind: type) -> bool:
    return any(isinstance(hook, kind) for hook in module._forward_pre_hooks.values())


def _place(name: str, module: nn.Module) -> str:
    kind = type(module)
    full = f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.modules") else kind.__name__
    return f"{full} ({name})" if name else full
