"""The classifier where the defense computes in 16 bit: traced and folded as the steps are, for any number of images."""

import warnings

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fastdef.runtime import passes
from fastdef.runtime.checked import Network, random_like, relative
from fastdef.runtime.forward import forward, reason_of
from fastdef.runtime.step import compile_graph
from fastdef.runtime.trace import folded
from fastdef.runtime.tracing import graph_of

_ALLOWED = 1e-4  # relative difference of the logits in float32; right traces are two orders of magnitude below
_SIZES = (3, 2)  # images that it is traced on


def reduced_classifier(
    model: nn.Module, like: Tensor, *, dtype: torch.dtype, compile: bool, largest: int = 64
) -> Network:
    """A copy of a model as it is now that computes in 16 bit; images and logits stay float32.

    Where its trace is not the model on random images, the model itself, with a warning.

    Args:
        model: a classifier in eval mode.
        like: (N, C, H, W) float32 images like those to come, on the device wanted; number and values do not matter.
        dtype: of weights and activations: float16 or bfloat16.
        compile: run it through torch.compile.
        largest: images that it will be given at once; it is judged on as many.
    """
    batches = [random_like(like, seed=size, size=size) for size in (*_SIZES, largest)]
    try:
        graph = _checked(model, batches, dtype)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # whatever a trace stumbles over, the model may not
        reason = f"the classifier cannot be traced, so it stays in float32: {reason_of(error)}"
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return model
    if not compile:
        return graph
    torch._dynamo.mark_dynamic(batches[0], 0)
    fast = compile_graph(graph, (batches[0],), dynamic=None)
    with torch.no_grad():
        fast(batches[0][:1].clone())  # one image is a program of its own
    return fast


def _checked(model: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> GraphModule:
    """The graph in ``dtype``, made as one in float32 was that is the model at every batch size."""
    try:
        few = batches[:1]  # where numbers of the trace follow the batch by themselves
        _compare(_graph(model, few, torch.float32), model, batches)
    except Exception:
        few = batches[:2]
        _compare(_graph(model, few, torch.float32), model, batches)
    return _graph(model, few, dtype)


def _graph(model: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> GraphModule:
    graph, *twins = (_reduced(model, images, dtype) for images in batches)
    for twin in twins:
        passes.follow_batch(graph, twin, _SIZES)
    if not twins:
        passes.free_batch(graph)
    return graph


@torch.no_grad()
def _reduced(model: nn.Module, example: Tensor, dtype: torch.dtype) -> GraphModule:
    network = folded(model, example)
    passes.detach_constants(network, dtype=dtype)

    def reduced(images: Tensor) -> Tensor:
        return network(images.to(dtype, memory_format=torch.channels_last)).to(images.dtype)

    return graph_of(reduced, example, table=passes.NORM_TABLE)


def _compare(graph: GraphModule, model: nn.Module, batches: list[Tensor]) -> None:
    apart = max(relative(graph(images), forward(model, images)) for images in batches)
    if not apart <= _ALLOWED:
        raise ValueError(f"its trace is {apart:.2%} off")
