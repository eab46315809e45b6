"""Graph passes that leave of a traced network only what an input gradient needs.

Each takes a GraphModule of ATen calls whose constants are buffers (``get_attr`` nodes), and changes it in place.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fastdef.runtime.tracing import Table

aten = torch.ops.aten


def eval_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm in eval mode as the affine map it is; for a decomposition table.

    ``rest`` is (training, momentum, eps) or (momentum, eps), as the ATen variants have it. One that normalizes by what
    it is given, as instance norm and standardized weights do, stays what it is.

    Raises:
        ValueError: if the network was traced in training mode.
    """
    if len(rest) == 3 and rest[0]:
        if mean is not None:
            raise ValueError("the defense needs a model in eval mode, got one whose batch norm is training")
        return NotImplemented
    scale = torch.rsqrt(var + rest[-1])
    scale = scale if weight is None else weight * scale
    shift = -mean * scale if bias is None else bias - mean * scale  # type: ignore[operator]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return x * scale.view(shape) + shift.view(shape), x.new_empty(0), x.new_empty(0)


def cudnn_batch_norm(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as cuDNN's variant returns it: with a reserve, which only training fills."""
    if args[5]:
        return NotImplemented
    y, mean, invstd = eval_batch_norm(*args)
    return y, mean, invstd, y.new_empty(0, dtype=torch.uint8)


BATCH_NORM_TABLE: Table = {
    aten._native_batch_norm_legit_no_training.default: eval_batch_norm,
    aten.native_batch_norm.default: eval_batch_norm,
    aten.cudnn_batch_norm.default: cudnn_batch_norm,
    aten.miopen_batch_norm.default: eval_batch_norm,
}


# Norms as the sums they are: their kernels take one layout, and here an activation may lie in another.
NORM_TABLE: Table = get_decompositions(
    [
        aten.native_group_norm,
        aten.native_group_norm_backward,
        aten.native_layer_norm,
        aten.native_layer_norm_backward,
    ]
)


def detach_constants(graph: GraphModule, *, dtype: torch.dtype) -> None:
    """Make every constant a buffer of its own: no gradient, channels_last, floats in ``dtype``."""
    for node in graph.graph.nodes:
        if node.op != "get_attr" or not isinstance(value := _constant(graph, node), Tensor):
            continue
        value = value.detach()
        if value.is_floating_point():
            value = value.to(dtype)
        layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        _replace(graph, node, value.clone(memory_format=layout))
    _clean(graph)


def fold_constants(graph: GraphModule) -> None:
    """Compute now whatever hangs on constants alone: a batch norm's scale and shift, a weight's parametrization."""
    known: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            known[node] = _constant(graph, node)
        elif node.op == "call_function" and node.all_input_nodes and known.keys() >= set(node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = value = node.target(*args, **kwargs)
            if isinstance(value, Tensor):
                known[_replace(graph, node, value)] = value
    _clean(graph)


def free_views(graph: GraphModule) -> None:
    """Let a view be a reshape: constants are channels_last here, and what comes of them may be."""
    for node in graph.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.as_strided.default and _is_reshape(node):
            node.target, node.args = aten.reshape.default, node.args[:2]
    _clean(graph)


def _is_reshape(node: Node) -> bool:
    """Whether an ``as_strided`` took all of a contiguous tensor in order, when it was traced."""
    (source, *_), result = node.all_input_nodes, node.meta["val"]
    source = source.meta["val"]
    return source.is_contiguous() and result.is_contiguous() and source.numel() == result.numel()


def fold_affine(graph: GraphModule) -> None:
    """Fold conv(x) * scale + shift, both by output channel, into the convolution's weight and bias."""
    for node in list(graph.graph.nodes):
        if node.target not in (aten.mul.Tensor, aten.add.Tensor) or len(node.args) != 2 or node.kwargs:
            continue
        conv, factor = node.args
        if not (isinstance(conv, Node) and isinstance(factor, Node) and len(conv.users) == 1):
            continue
        if conv.target is not aten.convolution.default or factor.op != "get_attr" or conv.args[6]:
            continue
        weight = _constant(graph, conv.args[1])
        bias = None if conv.args[2] is None else _constant(graph, conv.args[2])
        value = _constant(graph, factor)
        if value.shape != (1, weight.shape[0], 1, 1):
            continue
        value = value.flatten()
        if node.target is aten.mul.Tensor:
            weight = weight * value.view(-1, 1, 1, 1)
            bias = None if bias is None else bias * value
        else:
            bias = value if bias is None else bias + value
        folded = [_insert(graph, conv, weight), None if bias is None else _insert(graph, conv, bias)]
        conv.args = (conv.args[0], *folded, *conv.args[3:])
        node.replace_all_uses_with(conv)
    _clean(graph)


def drop_detach(graph: GraphModule) -> None:
    """Remove ``detach``, which means nothing in a graph that nobody differentiates again."""
    for node in list(graph.graph.nodes):
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    _clean(graph)


def free_batch(graph: GraphModule) -> None:
    """Let a view or an expansion that kept the batch keep any, in any layout.

    The number it was traced with becomes -1; a view becomes a reshape, for constants are channels_last here and what
    comes of them may be where the network's own was not.
    """
    for node in graph.graph.nodes:
        if node.target not in (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default):
            continue
        source, sizes = node.args[0], list(node.meta["val"].shape)
        if sizes and source.meta["val"].shape[:1] == torch.Size(sizes[:1]):
            sizes[0] = -1
        node.args = (source, sizes, *node.args[2:])
        if node.target is not aten.expand.default:
            node.target = aten.reshape.default
    _clean(graph)


def follow_batch(graph: GraphModule, twin: GraphModule, sizes: tuple[int, int]) -> None:
    """Let every number that grew with the batch follow it: ``twin`` is the same program at another batch size.

    Such a number is an argument that is k N in the one and k N' in the other. It becomes k times the size of the input,
    or, where it is the one such size of a reshape, -1. Nothing is done to programs that differ in more than numbers.

    Args:
        graph: traced at a batch size of N; changed in place.
        twin: traced at N'.
        sizes: N and N'.
    """
    pairs = list(zip(graph.graph.nodes, twin.graph.nodes, strict=False))
    if len(graph.graph.nodes) != len(twin.graph.nodes) or any(
        a.target != b.target for a, b in pairs if a.op == "call_function"
    ):
        return
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(images):
        batch = graph.graph.call_function(aten.sym_size.int, (images, 0))
    for node, other in pairs:
        if node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
            node.target = aten.reshape.default
            for one in (node, other):  # in numbers, where the program had -1
                one.args = one.args[0], list(one.meta["val"].shape)
        node.args = tuple(_followed(*both, batch, sizes) for both in zip(node.args, other.args, strict=True))
        if node.target is aten.reshape.default and sum(isinstance(size, Node) for size in node.args[1]) == 1:
            node.args = node.args[0], [-1 if isinstance(size, Node) else size for size in node.args[1]]
    _clean(graph)


def _followed(value: Any, other: Any, batch: Node, sizes: tuple[int, int]) -> Any:
    """An argument of the one program, beside the same one of the other."""
    if isinstance(value, (list, tuple)):
        return type(value)(_followed(*both, batch, sizes) for both in zip(value, other, strict=True))
    if type(value) is not int or value == other:
        return value
    times, rest = divmod(value, sizes[0])
    if rest or other != times * sizes[1]:
        return value
    with batch.graph.inserting_after(batch):
        return batch.graph.call_function(operator.mul, (batch, times))


def unroll_convolution_backward(graph: GraphModule) -> None:
    """Write a convolution's input gradient as a convolution of the gradient.

    With stride 1 and one group it is a plain convolution with the flipped, transposed weight, which is a constant; else
    a transposed convolution. Weight gradients must not have been asked for.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.convolution_backward.default:
            continue
        gradient, x, weight_node, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        if mask[1] or mask[2] or weight_node.op != "get_attr":
            raise ValueError("the defense needs convolutions with constant weights, got one whose weight is computed")
        weight = _constant(graph, weight_node)
        kernel = weight.shape[2:]
        if transposed:  # its input gradient is a plain convolution with the same weight
            call = (gradient, weight_node, None, stride, padding, dilation, False, [0, 0], groups)
        elif groups == 1 and all(s == 1 for s in stride):
            flipped = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            outer = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            call = (gradient, _insert(graph, node, flipped), None, stride, outer, dilation, False, [0, 0], 1)
        else:
            sizes = zip(_plane(x), _plane(gradient), stride, padding, dilation, kernel, strict=True)
            left = [full - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for full, o, s, p, d, k in sizes]
            call = (gradient, weight_node, None, stride, padding, dilation, True, left, groups)
        with graph.graph.inserting_before(node):
            whole = graph.graph.call_function(aten.convolution.default, call)
        whole.meta["val"] = x.meta["val"]  # an input gradient is of its input's shape, which the next one asks for
        for user in list(node.users):  # getitem 0; 1 and 2 were not asked for
            user.replace_all_uses_with(whole)
    _clean(graph)


def relu_masks(graph: GraphModule) -> None:
    """Let the backward of each ReLU keep one byte a value, its mask, in place of the activation."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.threshold_backward.default:
            continue
        gradient, activation, threshold = node.args
        with graph.graph.inserting_after(activation):
            mask = graph.graph.call_function(aten.gt.Scalar, (activation, threshold))
        with graph.graph.inserting_before(node):
            masked = graph.graph.call_function(aten.mul.Tensor, (gradient, mask))
        node.replace_all_uses_with(masked)
    _clean(graph)


def _constant(graph: GraphModule, node: Any) -> Any:
    return getattr(graph, node.target)


def _insert(graph: GraphModule, before: Node, value: Tensor) -> Node:
    index = 0
    while hasattr(graph, f"constant{index}"):
        index += 1
    graph.register_buffer(f"constant{index}", value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(f"constant{index}")
    node.meta["val"] = value
    return node


def _replace(graph: GraphModule, node: Node, value: Tensor) -> Node:
    constant = _insert(graph, node, value)
    node.replace_all_uses_with(constant)
    return constant


def _plane(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape[2:])


def _clean(graph: GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*graph._buffers, *graph._parameters]:
        if name not in used:
            delattr(graph, name)
    graph.recompile()
