"""A loop of an ONNX file that runs only the images that still need steps, a few at a time.

The exporter's loop is masked: its body gets the whole batch in each turn, and an image that is done stays as is. This
one carries the whole batch too, and the indices of the running images with it: a turn gathers the first ``chunk`` of
those, steps them, scatters them back and keeps the indices of those that go on, so that another takes the place of one
that is done. The steps are the same, and the numbers to rounding: a convolution may sum one image otherwise than many.
The shapes depend on the data, which ONNX Runtime and OpenVINO allow and TensorRT does not.
"""

from typing import Any

CHUNK = 16  # images a turn: their features fit a core's cache, 1.5 times as fast as 64 in ONNX Runtime, one thread
_STATE = 3  # images, steps, loss; the loop's fourth is which are running


def compact(model: Any, *, chunk: int = CHUNK) -> None:
    """Rewrite the one loop of an ``onnx.ModelProto`` in place; see the module.

    Args:
        model: with the exporter's loop.
        chunk: images a turn.

    Raises:
        ValueError: if there is not one loop of images, steps, loss and running.
    """
    loops = [(place, node) for place, node in enumerate(model.graph.node) if node.op_type == "Loop"]
    if len(loops) != 1 or len(loops[0][1].output) != _STATE + 1:
        raise ValueError(f"a loop to compact has {_STATE + 1} states and is alone in its file, got {len(loops)} loops")
    place, loop = loops[0]
    before, compacted = _before(loop), _loop(loop, chunk)
    del model.graph.node[place]
    for offset, node in enumerate([*before, compacted]):
        model.graph.node.insert(place + offset, node)


def _before(loop: Any) -> list[Any]:
    """The indices of all images, 0 to N - 1."""
    from onnx import helper

    steps = loop.input[3]
    return [
        *(_constant(f"compact_{name}", value) for name, value in (("zero", 0), ("one", 1))),
        helper.make_node("Size", [steps], ["compact_batch"]),
        helper.make_node("Range", ["compact_zero", "compact_batch", "compact_one"], ["compact_all"]),
    ]


def _loop(loop: Any, chunk: int) -> Any:
    from onnx import helper

    count, condition, *state, _ = loop.input
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    return helper.make_node(
        "Loop",
        [count, condition, *state, "compact_all"],
        [*loop.output[:_STATE], "compact_left"],
        name=loop.name,
        body=_body(body, chunk),
    )


def _body(body: Any, chunk_size: int) -> Any:
    """The exporter's body between a gathering and a scattering."""
    import numpy as np
    from onnx import TensorProto, helper

    count, condition, *state, _ = body.input  # a step does not ask which are running
    _, *stepped, running_out = (value.name for value in body.output)
    whole = [_renamed(value, f"compact_whole_{i}") for i, value in enumerate(state)]
    scattered = [_renamed(value, f"compact_stepped_{i}") for i, value in enumerate(state)]
    active, left = (
        helper.make_tensor_value_info(f"compact_{name}", TensorProto.INT64, [None]) for name in ("active", "left")
    )
    goes_on = helper.make_tensor_value_info("compact_goes_on", TensorProto.BOOL, [])
    # The first of the running ones, and those that wait.
    split = [
        helper.make_node("Slice", [active.name, "compact_start", "compact_chunk"], ["compact_head"]),
        helper.make_node("Slice", [active.name, "compact_chunk", "compact_end"], ["compact_tail"]),
    ]
    gather = [
        helper.make_node("Gather", [all_.name, "compact_head"], [value.name], axis=0)
        for all_, value in zip(whole, state, strict=True)
    ]
    scatter = [
        helper.make_node("ScatterND", [all_.name, "compact_places", new], [result.name])
        for all_, new, result in zip(whole, stepped, scattered, strict=True)
    ]
    nodes = [
        _constant("compact_last", [-1]),
        _constant("compact_none", 0),
        _constant("compact_start", [0]),
        _constant("compact_chunk", [chunk_size]),
        _constant("compact_end", [np.iinfo(np.int64).max]),
        *split,
        *gather,
        *body.node,
        helper.make_node("Unsqueeze", ["compact_head", "compact_last"], ["compact_places"]),
        *scatter,
        helper.make_node("Compress", ["compact_head", running_out], ["compact_kept"], axis=0),
        helper.make_node("Concat", ["compact_kept", "compact_tail"], [left.name], axis=0),
        helper.make_node("Size", [left.name], ["compact_count"]),
        helper.make_node("Greater", ["compact_count", "compact_none"], [goes_on.name]),
    ]
    return helper.make_graph(
        nodes,
        body.name,
        [count, condition, *whole, active],
        [goes_on, *scattered, left],
        initializer=list(body.initializer),
    )


def _renamed(value: Any, name: str) -> Any:
    """The same type under another name, with any batch: what is gathered has fewer images than what is carried."""
    from onnx import ValueInfoProto

    renamed = ValueInfoProto()
    renamed.CopyFrom(value)
    renamed.name = name
    return renamed


def _constant(name: str, value: int | list[int]) -> Any:
    import numpy as np
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.int64)))
