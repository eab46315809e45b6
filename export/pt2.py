"""Packages of AOTInductor: a file of an export compiled beforehand, which torch loads in milliseconds, C++ too.

A package is machine code for the kind of CPU that made it. Loading one runs it: load what you made or trust as you
would a program.
"""

import io
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from fastdef.checkpoint import Checkpoint
from fastdef.export.files import Artefact, artefacts, quiet
from fastdef.export.manifest import MANIFEST, name_files, read, sha256, verified
from fastdef.io import atomic_write

_LARGEST_BATCH = 1 << 16
_PACKAGED = ("classifier", "step", "defended")


def export_pt2(
    checkpoint: Checkpoint, folder: Path, *, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> list[Path]:
    """Write ``classifier.pt2``, ``step.pt2`` and ``defended.pt2`` beside an export's ONNX files, for this CPU.

    The loop of ``defended.pt2`` steps the whole batch until its last image is done; the driven form does not.

    Args:
        checkpoint: what was exported, on the CPU.
        folder: that :func:`export_onnx` wrote.
        shape: (C, H, W) of an image.
        dtype: as the export's.

    Raises:
        ValueError: if there is no export, there is no C++ compiler, or a module cannot be compiled.
    """
    described = read(folder / MANIFEST)["files"]
    written = []
    for artefact in artefacts(checkpoint, shape, dtype):
        if artefact.name in _PACKAGED:
            path = folder / f"{artefact.name}.pt2"
            with atomic_write(path) as temporary:
                temporary.write_bytes(_packaged(artefact))
            source = described.get(f"{artefact.name}.onnx", {})
            facts = {key: source[key] for key in ("inputs", "outputs") if key in source}
            name_files(
                folder / MANIFEST, {path.name: {**facts, "sha256": sha256(path.read_bytes()), "built_by": _built_by()}}
            )
            written.append(path)
    return written


class Pt2Session:
    """A package in the torch that is here, on the CPU.

    Args:
        path: the file; its folder's ``model.json`` says what made it.

    Raises:
        ValueError: if the file is not the one ``model.json`` names, or was made by another torch or for another CPU.
    """

    def __init__(self, path: Path) -> None:
        content = verified(path)
        manifest = path.parent / MANIFEST
        facts = read(manifest)["files"][path.name]
        if facts.get("built_by") != _built_by():
            raise ValueError(
                f"{path} was built by {facts.get('built_by')}, and here is {_built_by()}: build it here, with "
                "`fastdef export --format pt2`"
            )
        try:
            self._run = torch._inductor.aoti_load_package(io.BytesIO(content))
        except Exception as error:  # what a damaged package raises has no common base
            raise ValueError(f"torch refuses {path}: {' '.join(str(error).split())[:300]}") from error
        self.inputs = list(facts["inputs"])
        self.description: str | None = manifest.read_text()
        self.exact = True
        self.replayable = False
        self.largest_batch: int | None = _LARGEST_BATCH
        self.device = "cpu"

    @torch.no_grad()
    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`."""
        outputs = self._run(*(given[name].contiguous() for name in self.inputs))
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _packaged(artefact: Artefact) -> bytes:
    batch = Dim("batch", min=1, max=_LARGEST_BATCH)
    inputs = tuple(artefact.inputs.values())
    dynamic = tuple({0: batch} if value.ndim else None for value in inputs)
    package = io.BytesIO()
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(artefact.module.eval(), inputs, dynamic_shapes=dynamic, strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=package)
    except Exception as error:  # Inductor's own, the compiler's and torch.export's
        raise ValueError(f"cannot compile {artefact.name}.pt2: {' '.join(str(error).split())[:300]}") from error
    return package.getvalue()


def _built_by() -> str:
    return f"torch {torch.__version__} for {torch.backends.cpu.get_cpu_capability()}"
