"""TensorRT engines from exported ONNX files, by TensorRT or TensorRT for RTX, whichever is installed.

Both have one Python interface. TensorRT for RTX builds on a machine without a GPU, and finishes the engine on the one
it runs on. Networks are strongly typed: an engine computes in the types its ONNX file has.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdef.export.manifest import MANIFEST, MASKED, name_files, read, sha256, verified
from fastdef.io import atomic_write

PACKAGES = ("tensorrt", "tensorrt_rtx")
BATCHES = (1, 64, 256)  # smallest, best, largest


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        batches: smallest, best and largest batch that it takes.
        version_compatible: also for later versions of TensorRT.
        hardware_compatible: also for other GPUs, from Ampere on; else for one like that it is built on or for.
        timing_cache: file of measured kernels, read if it is there and written after; TensorRT proper only.

    Raises:
        ValueError: for batches that are not three rising numbers from 1 up.
    """

    batches: tuple[int, int, int] = BATCHES
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if len(self.batches) != 3 or not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            raise ValueError(f"EngineOptions needs three rising batches from 1 up, got {self.batches}")


def tensorrt() -> Any:
    """The installed package, TensorRT proper first.

    Raises:
        ValueError: if neither is installed.
    """
    package = next((name for name in PACKAGES if importlib.util.find_spec(name)), None)
    if package is None:
        raise ValueError("engines need TensorRT: install fastdef[gpu] (tensorrt) or fastdef[rtx] (tensorrt_rtx)")
    return importlib.import_module(package)


def export_engines(
    folder: Path, *, names: Sequence[str] | None = None, options: EngineOptions | None = None
) -> list[Path]:
    """Build ``NAME.engine`` beside each ``NAME.onnx`` of a masked export, and describe it in ``model.json``.

    Args:
        folder: that ``export_onnx`` wrote.
        names: of the files without their ending; all in the manifest if not given.
        options: how.

    Returns:
        The engines written; each is written whole or not at all.

    Raises:
        ValueError: if the folder holds no export, or a file that ``model.json`` does not name; if TensorRT is not
            installed, or refuses a file: with its reason.
    """
    trt = tensorrt()
    manifest_path = folder / MANIFEST
    files = read(manifest_path)["files"]
    options = options or EngineOptions()
    # What was made of another file, such as a quantised classifier, is an end in itself.
    own = [
        Path(file).stem
        for file, facts in files.items()
        if file.endswith(".onnx") and not file.endswith(MASKED) and "of" not in facts
    ]
    sources = {name: _source(folder, name, files) for name in names or own}
    written = {}
    for name, source_path in sources.items():
        content = _build(trt, source_path, options)
        path = folder / f"{name}.engine"
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        source = files.get(f"{name}.onnx", {})
        written[path] = {
            **{key: source[key] for key in ("inputs", "outputs") if key in source},
            "sha256": sha256(content),
            "built_by": f"{trt.__name__} {trt.__version__}",
            "batches": list(options.batches),
        }
    name_files(manifest_path, {path.name: facts for path, facts in written.items()})
    return list(written)


def _source(folder: Path, name: str, files: dict[str, Any]) -> Path:
    """The file that an engine is built from: of a loop the masked form, for TensorRT knows shapes beforehand."""
    if name in ("noised", "defended") and f"{name}.onnx" in files:
        if f"{name}{MASKED}" not in files:
            raise ValueError(
                f"{name}.engine is built from {name}{MASKED}, which {folder} has not: export it again with "
                "`fastdef export --format tensorrt`, or export_onnx(..., masked=True)"
            )
        return folder / f"{name}{MASKED}"
    return folder / f"{name}.onnx"


def _build(trt: Any, path: Path, options: EngineOptions) -> bytes:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(verified(path)):
        reasons = "; ".join(_one_line(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise ValueError(f"TensorRT cannot take {path}: {reasons or 'it is not to be read'}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, options.batches))
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    cache = _timing_cache(config, options.timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"TensorRT cannot build {path}: {_one_line(logger.last) or 'it does not say why'}")
    if cache is not None and options.timing_cache is not None:
        with atomic_write(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        given = network.get_input(index)
        shape = tuple(given.shape)
        if -1 in shape:
            profile.set_shape(given.name, *(tuple(n if d == -1 else d for d in shape) for n in batches))
    return profile


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's last complaint, and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message

    return Logger()


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:300]
