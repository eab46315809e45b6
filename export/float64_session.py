"""An exported file in double precision: the same graph and the same weights, where rounding decides nothing."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdef.export.manifest import verified


class Float64Session:
    """An ONNX file whose floats are all made float64, in the evaluator that ONNX itself defines its operators by.

    ONNX Runtime has no float64 convolution on a CPU. The evaluator is numpy, and slow: for a few images.

    Args:
        path: the file.

    Raises:
        ValueError: if it is not the one ``model.json`` names.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.ops.op_max_pool import MaxPool as Original

        class MaxPool(Original):
            """The other of its two ways: at stride 1 it takes one that counts indices anew in each plane."""

            _run = Original._max_pool  # type: ignore[assignment]

        model = onnx.load_from_string(verified(path))
        _double(model.graph)
        self._evaluator = ReferenceEvaluator(model, new_ops=[MaxPool])

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs, in the file's order."""
        outputs = self._evaluator.run(None, {name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)


def _double(graph: "onnx.GraphProto") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Every weight, constant and cast, those of loops' bodies too. The evaluator does not look at declared types."""
    from onnx import AttributeProto, TensorProto, helper, numpy_helper

    def double(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    for tensor in graph.initializer:
        double(tensor)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:  # zeros in single precision
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _double(attribute.g)
            elif attribute.type == AttributeProto.TENSOR:
                double(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
