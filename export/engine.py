"""Opens an exported classifier: one call, whatever engine is behind it, as the defense in PyTorch has."""

import os
from collections.abc import Sequence
from pathlib import Path

from fastdef._validate import check_count
from fastdef.export.driven_engine import DrivenEngine
from fastdef.export.manifest import MANIFEST, read, read_description
from fastdef.export.opening import CPU, file_for, open_session
from fastdef.export.sessions import Provider
from fastdef.export.whole_engine import Engine as Engine
from fastdef.export.whole_engine import EngineResult as EngineResult
from fastdef.export.whole_engine import WholeEngine


def load_engine(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] = CPU,
    driven: bool = False,
    slots: int = 64,
    cuda_graphs: bool = False,
) -> Engine:
    """Open an export, and see that it gives the answers it is known to give.

    Args:
        path: the folder that ``fastdef export`` wrote, or in it ``defended.onnx``, ``.engine``, ``.xml`` or ``.pt2``.
        providers: of ONNX Runtime, names or pairs of a name and options; the first that can run a part runs it. Alone:
            "TensorRT" runs the ``.engine`` files, "OpenVINO" the ``.xml`` or else the ``.onnx`` files, "PT2" the
            ``.pt2`` packages, which are programs: load none that you do not trust.
        driven: run ``step`` and ``classifier``, many images at once and each as long as it needs, in place of the
            whole in one file: faster, and what a server should take.
        slots: images under way at once, where it is driven.
        cuda_graphs: of a driven step in TensorRT or on the CUDAExecutionProvider; not run on a GPU yet.

    Raises:
        ValueError: if there is no such file, the folder's export was cut short, the file is not the one that
            ``model.json`` beside it names, it is of another's making, cannot run here or would run elsewhere than on
            the providers, or does not give the answers that the export is known to give.
    """
    place = Path(path)
    check_count(slots, name="slots", where="load_engine")
    if not place.exists():
        raise ValueError(f"load_engine needs what `fastdef export` wrote, and there is no {place}")
    if cuda_graphs and not driven:
        raise ValueError("load_engine has cuda_graphs around the step of a driven export: pass driven=True")
    files = _files(place, providers, driven=driven)
    sessions = [
        open_session(file, providers, spinning=not driven, graphed=cuda_graphs and file is files[0]) for file in files
    ]
    expected = ["images", "steps", "limits", "delta"] if driven else ["images", "ids", "seed"]
    if sessions[0].description is None or sessions[0].inputs != expected:
        raise ValueError(
            f"load_engine needs a {files[0].name} of `fastdef export`, got {place} with {sessions[0].inputs}"
        )
    description = read_description(sessions[0].description, source=files[0])
    engine = (
        DrivenEngine(sessions[0], sessions[1], description, slots=slots)
        if driven
        else WholeEngine(sessions[0], description)
    )
    engine.verify()
    return engine


def _files(place: Path, providers: Sequence[Provider], *, driven: bool) -> list[Path]:
    """Those to open, which are there."""
    if place.is_dir():
        read(place / MANIFEST)  # some of the files are there before an export is whole
    folder = place if place.is_dir() else place.parent
    names = ["step", "classifier"] if driven else ["defended"]
    files = [place] if place.suffix and not driven else [file_for(folder, name, providers) for name in names]
    for file in files:
        if not file.is_file():
            raise ValueError(f"load_engine needs a {file.name} that `fastdef export` wrote, and there is no {file}")
    return files
