"""Backward operators that ONNX has no form for, written out in operators that it has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, Proxy
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.proxy import GraphAppendingTracer
from torch.nn.functional import adaptive_avg_pool2d, softplus

aten = torch.ops.aten


def silu_backward(grad: Any, x: Any) -> Any:
    """d(x s)/dx with s = sigmoid(x)."""
    s = torch.sigmoid(x)
    return grad * s * (1 + x * (1 - s))


def mish_backward(grad: Any, x: Any) -> Any:
    """d(x t)/dx with t = tanh(softplus(x))."""
    t = torch.tanh(softplus(x))
    return grad * (t + x * torch.sigmoid(x) * (1 - t * t))


_ELEMENTWISE: dict[Any, Callable[[Any, Any], Any]] = {
    aten.silu_backward.default: silu_backward,
    aten.mish_backward.default: mish_backward,
}
_UPSAMPLED: dict[Any, Any] = {
    aten.upsample_nearest2d_backward.default: aten.upsample_nearest2d.default,
    aten._upsample_nearest_exact2d_backward.default: aten._upsample_nearest_exact2d.default,
    aten.upsample_bilinear2d_backward.default: aten.upsample_bilinear2d.default,
    aten.upsample_bicubic2d_backward.default: aten.upsample_bicubic2d.default,
}


def avg_pool_rows(
    size: int, axis: int, kernel: Any, stride: Any, padding: Any, ceil: bool, include: bool, divisor: int | None
) -> Tensor:
    """(size, pooled) matrix of average pooling along one axis, which is a product of such over both."""
    over = divisor if axis or divisor is None else 1  # sums along the one, their quotient along the other
    options = [
        (neutral, value[1]) if axis else (value[0], neutral)
        for value, neutral in ((kernel, 1), (stride or kernel, 1), (padding, 0))
    ]
    pooled: Tensor = aten.avg_pool2d(_units(size, axis), *options, ceil, include, over)
    return pooled.flatten(1)


def adaptive_rows(size: int, axis: int, pooled: int) -> Tensor:
    """(size, pooled) matrix of adaptive average pooling along one axis."""
    return adaptive_avg_pool2d(_units(size, axis), (1, pooled) if axis else (pooled, 1)).flatten(1)


def upsampled_rows(forward: Any, size: int, axis: int, pooled: Any, options: tuple[Any, ...]) -> Tensor:
    """(size, upsampled) matrix of interpolation along one axis; ``options`` are align_corners, if any, and scales."""
    align, scales = options[: len(options) % 2], options[len(options) % 2 :] or (None, None)
    along = (1, pooled[1]) if axis else (pooled[0], 1)
    scale = (None, scales[1]) if axis else (scales[0], None)
    upsampled: Tensor = forward(_units(size, axis), along, *align, *scale)
    return upsampled.flatten(1)


def _units(size: int, axis: int) -> Tensor:
    """The unit vectors along an axis, as a batch of images of one line."""
    return torch.eye(size, dtype=torch.float64).view(size, 1, *((1, size) if axis else (size, 1)))


def write_out(graph: GraphModule, example: Tensor) -> None:
    """Write out what ONNX has no form for, in place; ``example`` is what the graph takes.

    Average pooling and interpolation are linear, and one matrix for each axis: with rows R and columns C the input
    gradient is R grad C.
    """
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    tracer = GraphAppendingTracer(graph.graph)
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            written = _written(graph, node, tracer)
        if written is not None:
            written.node.meta["tensor_meta"] = node.meta["tensor_meta"]  # which the next one may ask for
            node.replace_all_uses_with(written.node)
            graph.graph.erase_node(node)
    graph.recompile()


def _written(graph: GraphModule, node: Node, tracer: GraphAppendingTracer) -> Proxy | None:
    args: Any = node.args
    if node.target in _ELEMENTWISE:
        written: Proxy = _ELEMENTWISE[node.target](Proxy(args[0], tracer), Proxy(args[1], tracer))
        return written
    if node.target == aten.avg_pool2d_backward.default:
        rows, columns = (avg_pool_rows(_size(args[1], axis), axis, *args[2:]) for axis in range(2))
    elif node.target == aten._adaptive_avg_pool2d_backward.default:
        rows, columns = (adaptive_rows(_size(args[1], axis), axis, _size(args[0], axis)) for axis in range(2))
    elif (forward := _UPSAMPLED.get(node.target)) is not None:
        rows, columns = (upsampled_rows(forward, _size(node, axis), axis, args[1], args[3:]) for axis in range(2))
    else:
        return None
    dtype, grad = args[0].meta["tensor_meta"].dtype, Proxy(args[0], tracer)
    for name, value in (("rows", rows), ("columns", columns.T)):
        graph.register_buffer(f"{node.name}_{name}", value.to(dtype).contiguous())
    left, right = (Proxy(graph.graph.get_attr(f"{node.name}_{name}"), tracer) for name in ("rows", "columns"))
    both: Any = torch.matmul
    result: Proxy = both(both(left, grad), right)
    return result


def _size(node: Node, axis: int) -> int:
    return int(node.meta["tensor_meta"].shape[2 + axis])
