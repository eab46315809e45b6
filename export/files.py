"""Writes a model, defended or not, as ONNX files with a manifest."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastdef._validate import check_installed
from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.arithmetic_noise import limbs
from fastdef.export.compaction import compact
from fastdef.export.known_answers import make_known_answers
from fastdef.export.manifest import MANIFEST, MASKED, check_steps, sha256
from fastdef.export.modules import DefendedClassifier, InType, NoisedClassifier, Probabilities, Steps
from fastdef.io import atomic_write, make_folder

OPSET = 20
_BFLOAT16_OPSET = 22  # the first with a bfloat16 convolution
STEPS_A_CALL = 2  # of step.onnx: half the calls, and an image that is done waits for one step at most
_OUTPUTS = ("probabilities", "steps", "converged", "loss", "smoothed")


@dataclass(frozen=True)
class Artefact:
    """A file to be.

    Attributes:
        name: of the file, without its ending.
        module: what it does.
        inputs: examples by name; those that have a dimension have a batch.
        outputs: names.
        loops: whether it has the loop, which is compacted unless a masked form is asked for.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    loops: bool = False


def export_onnx(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    masked: bool = False,
) -> list[Path]:
    """Write ``classifier.onnx``, with an Active Defense ``defended.onnx``, ``noised.onnx`` and ``step.onnx`` too.

    ``defended.onnx`` is everything: it takes images, an id and a seed for each, and makes the noise, the loop and the
    classification with standard operators alone; every input has a batch, so that a server may join requests.
    ``noised.onnx`` takes the noise as an input instead. ``step.onnx`` is a few masked steps without control flow, to be
    driven from outside. ``model.json`` describes them all. The loops run only the images that still need steps, which
    takes shapes that depend on the data.

    Args:
        checkpoint: from :func:`fastdef.load`, on the CPU.
        folder: made if it is not there; each file is written whole or not at all.
        shape: (C, H, W) of an image.
        dtype: of the networks inside, float32, float16, or bfloat16, which is for engines: ONNX Runtime does not
            compute in it on a CPU. Image, loss, threshold and update are float32.
        masked: write ``defended.masked.onnx`` and ``noised.masked.onnx`` too, whose loops step the whole batch to the
            end, for engines whose shapes cannot depend on the data: :func:`export_engines` builds from them.

    Returns:
        The files written, the manifest last.

    Raises:
        ValueError: for a model with an operator that ONNX has no form for, naming it; for a defense of more steps than
            an export may take; for a missing package; or a file that cannot be written.
    """
    check_installed("onnx", "onnxscript", extra="export", where="an export")
    if checkpoint.defense is not None:
        check_steps(ActiveDefense.from_checkpoint(checkpoint, compile=False).config())
    make_folder(folder)
    opset = _BFLOAT16_OPSET if dtype == torch.bfloat16 else OPSET
    described = {
        "architecture": checkpoint.architecture,
        "classes": list(checkpoint.classes),
        "defense": checkpoint.defense,
        "image": {"shape": list(shape), "dtype": "float32", "range": [0, 1]},
        "dtype": str(dtype).removeprefix("torch."),
        "opset": opset,
        "versions": _versions(),
        "known_answers": make_known_answers(checkpoint, shape, dtype=dtype),
    }
    files = {}
    for artefact in artefacts(checkpoint, shape, dtype):
        inputs = {name: _describe(value) for name, value in artefact.inputs.items()}
        for path, content, outputs in _forms(artefact, folder, described, opset=opset, masked=masked):
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            files[path.name] = {"sha256": sha256(content), "inputs": inputs, "outputs": outputs}
    with atomic_write(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**described, "files": files}, indent=1) + "\n")
    return [*(folder / name for name in files), folder / MANIFEST]


def artefacts(checkpoint: Checkpoint, shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Artefact]:
    """The files of an export before any format: ``classifier``, with a defense ``step``, ``noised``, ``defended``."""
    images, model = torch.rand(3, *shape), InType(checkpoint.model, dtype)
    yield Artefact("classifier", Probabilities(model), {"images": images}, ("probabilities",))
    if checkpoint.defense is None:
        return
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False, dtype=dtype)
    step = defense.masked_step(images)
    if not step.any_batch:
        raise ValueError("the export needs a network that can be traced for any batch size, got one that cannot")
    counts = torch.zeros(3, dtype=torch.int32)
    state = {"images": images, "steps": counts, "limits": counts + 1, "delta": torch.tensor(defense.delta)}
    yield Artefact("step", Steps(step, STEPS_A_CALL), state, ("images_out", "steps_out", "loss", "running"))
    noise = torch.zeros(3, defense.outer_loops, *shape)
    given = {"images": images, "noise": noise}
    yield Artefact("noised", NoisedClassifier(defense, step, model), given, _OUTPUTS, loops=True)
    given = {"images": images, "ids": limbs(torch.arange(3)), "seed": limbs(torch.zeros(3, dtype=torch.int64))}
    yield Artefact("defended", DefendedClassifier(defense, step, model, shape), given, _OUTPUTS, loops=True)


def _forms(
    artefact: Artefact, folder: Path, described: dict[str, Any], *, opset: int, masked: bool
) -> Iterator[tuple[Path, bytes, dict[str, Any]]]:
    """Each file that is made of an artefact: where to, its content and its outputs."""
    proto = _translated(artefact, opset)
    if artefact.loops:
        if masked:
            yield folder / f"{artefact.name}{MASKED}", *_finished(artefact, proto, described)
        compact(proto)
    yield folder / f"{artefact.name}.onnx", *_finished(artefact, proto, described)


def serialise(artefact: Artefact, described: dict[str, Any], *, opset: int = OPSET) -> tuple[bytes, dict[str, Any]]:
    """The file, and what its outputs are."""
    return _finished(artefact, _translated(artefact, opset), described)


def _translated(artefact: Artefact, opset: int) -> Any:
    """As an ``onnx.ModelProto``.

    Raises:
        ValueError: for what ONNX has no form for.
    """
    from onnxscript import optimizer

    batch = Dim("batch")
    dynamic = tuple({0: batch} if value.ndim else None for value in artefact.inputs.values())
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                artefact.module.eval(),
                tuple(artefact.inputs.values()),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(artefact.inputs),
                output_names=list(artefact.outputs),
                opset_version=opset,
                verbose=False,
                optimize=opset == OPSET,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        raise ValueError(f"cannot export {artefact.name}.onnx: {_reason(error, artefact)}") from error
    if program is None:
        raise ValueError(f"cannot export {artefact.name}.onnx: the exporter returned nothing")
    if opset != OPSET:  # the whole of its optimiser folds batch norms in float32, beside bfloat16 convolutions
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def _finished(artefact: Artefact, proto: Any, described: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    import onnx

    onnx.helper.set_model_props(proto, {"fastdef": json.dumps(described, sort_keys=True)})
    onnx.checker.check_model(proto, full_check=True)  # strict shape inference too
    foreign = {node.domain for node in proto.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise ValueError(f"cannot export {artefact.name}.onnx with standard operators, it needs {', '.join(foreign)}")
    outputs = {value.name: _describe_output(value.type.tensor_type) for value in proto.graph.output}
    return proto.SerializeToString(deterministic=True), outputs


def _reason(error: BaseException, artefact: Artefact) -> str:
    """The operator that ONNX has no form for and the layer it is in, where that is what stopped the exporter."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    if node := re.search(r"node %(\w+)", " ".join(messages)):
        with torch.no_grad(), quiet():
            program = torch.export.export(artefact.module, tuple(artefact.inputs.values()), strict=False)
        for operator in program.run_decompositions().graph.nodes:
            if operator.name == node[1]:
                layer = [path for path, _ in operator.meta.get("nn_module_stack", {}).values() if path]
                name = re.sub(r"^(noised\.)?(loop\.)?(model\.)*", "", layer[-1]) if layer else "at the top"
                return f"the layer {name!r} has {operator.target}, which ONNX has no form for"
    return messages[-1][:400]


def _describe(value: Tensor) -> dict[str, Any]:
    shape = ["batch", *value.shape[1:]] if value.ndim else []
    return {"shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}


def _describe_output(tensor: Any) -> dict[str, Any]:
    import onnx

    sizes = [dim.dim_value or "batch" for dim in tensor.shape.dim]  # the one size that is not fixed
    return {"shape": sizes, "dtype": str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))}


def _versions() -> dict[str, str]:
    import onnx
    import onnxscript

    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns of its own inner workings, and logs what it will not register."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
