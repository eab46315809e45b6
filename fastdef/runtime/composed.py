"""Functions of torch that a trace takes apart before torch does, in a form that holds for any batch size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def composed(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The network, with those functions taken apart."""

    def run(images: Tensor) -> Tensor:
        with _Composed():
            return network(images)

    return run


class _Composed(TorchFunctionMode):
    """Instance norm as the sums it is: torch's own is a batch norm of the images side by side, at one batch size."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_instance_norm if func is functional.instance_norm else func)(*args, **(kwargs or {}))


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,  # of training
    eps: float = 1e-5,
) -> Tensor:
    """Of a network in eval mode: by each image's own statistics, or by those of training."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if use_input_stats or running_mean is None or running_var is None:
        var, mean = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    else:
        var, mean = running_var.view(shape), running_mean.view(shape)
    y = (x - mean) * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
