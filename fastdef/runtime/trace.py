"""The traced step: feature smoothing loss and its input gradient, with nothing computed that they do not need.

What a paper's code runs is the whole network forward and ``loss.backward()``, weight gradients included. Of that, one
step of Active Defense needs the network up to the smoothed layer, and the gradient with respect to the *image*. For any
network this is got by tracing it and simplifying the trace: batch norm in eval mode folds into the convolution before
it, the input gradient of a convolution becomes a convolution, a ReLU keeps a mask. What is left is a feed-forward graph
that torch.compile and the exporters take as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fastdef import ops
from fastdef.kernels import reference
from fastdef.runtime import passes
from fastdef.runtime.composed import composed
from fastdef.runtime.tracing import Table, graph_of

Features = Callable[[Tensor], Tensor]


class TracedStep(nn.Module):
    """images -> (loss, direction), as one explicit graph.

    ``direction`` is M * dL_F/dt: the unscaled sign field, sign(F - m) - mean(sign(F - m)), carried back to the image.
    Scaling by beta / M is left to the update, in fp32, so that nothing underflows where the convolutions are fp16.

    Attributes:
        graph: the traced graph; its constants are its own, copied when it was made.
        features: M, the number of features of one image.
        any_batch: whether it was seen to hold for another batch size than that of its example, as an export needs.
    """

    any_batch = False

    def __init__(self, graph: GraphModule, *, features: int) -> None:
        super().__init__()
        self.graph = graph
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) float32 images -> (N,) float32 losses, (N, C, H, W) float32 directions."""
        loss, direction = self.graph(images)
        return loss, direction


def traced_step(
    network: Features, example: Tensor, *, dtype: torch.dtype = torch.float32, twin: Tensor | None = None
) -> TracedStep:
    """Trace ``network``, images -> features, into its traced step.

    Args:
        network: the part of a model up to the smoothed layer, in eval mode; see :func:`fastdef.nn.prefix`.
        example: (N, C, H, W) float32 images of the batch shape wanted, on the device wanted; values do not matter.
        dtype: of weights and activations: float32, float16, bfloat16 (or float64, with float64 images, for tests).
            Image, loss and update keep the images' own.
        twin: an example of another batch size, where numbers of the trace are to follow the batch that do not by
            themselves.

    Raises:
        ValueError: if the network is in training mode, or its features are not (N, ...) with a gradient.
    """
    graph, features = _loss_and_direction(network, example, dtype)
    if twin is None:
        passes.free_batch(graph)
    else:
        other, _ = _loss_and_direction(network, twin, dtype)
        passes.follow_batch(graph, other, (len(example), len(twin)))
    passes.unroll_convolution_backward(graph)
    passes.relu_masks(graph)
    return TracedStep(graph, features=features)


def _loss_and_direction(network: Features, example: Tensor, dtype: torch.dtype) -> tuple[GraphModule, int]:
    """The graph of loss and direction, with a convolution's backward in one piece, and M."""
    forward = folded(network, example)
    passes.detach_constants(forward, dtype=dtype)
    shapes: list[torch.Size] = []

    def loss_and_direction(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            features = forward(images.to(dtype))
        shapes.append(features.shape)
        loss, field = _loss_and_field(features.detach())
        (direction,) = torch.autograd.grad(features, images, field)
        return loss, direction

    graph = _trace(loss_and_direction, example, passes.NORM_TABLE)
    passes.drop_detach(graph)
    return graph, shapes[0][1:].numel()


@torch.no_grad()
def folded(network: Features, example: Tensor) -> GraphModule:
    """Trace ``network`` and fold its batch norms, in the precision of the example; its constants are its own."""
    graph = _trace(
        composed(torch.func.functionalize(network)), example, {**passes.BATCH_NORM_TABLE, **passes.NORM_TABLE}
    )
    passes.free_views(graph)
    passes.fold_constants(graph)
    passes.detach_constants(graph, dtype=example.dtype)
    passes.fold_affine(graph)
    return graph


def _loss_and_field(features: Tensor) -> tuple[Tensor, Tensor]:
    if features.is_cuda:
        return ops.smoothing_loss_and_field(features)
    return reference.smoothing_field(features)  # plain torch, so that the CPU's compiler fuses it


def _trace(
    function: Features | Callable[[Tensor], tuple[Tensor, Tensor]], example: Tensor, table: Table
) -> GraphModule:
    return graph_of(lambda images: function(images), example, table=table)
