"""Every entrance there is, by its name."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import command, entrances
from tests.fuzz.entrances import Entrance

ENTRANCES: dict[str, Callable[[Path], Entrance]] = {
    made.__name__: made
    for made in (
        entrances.image_batches,
        entrances.images,
        entrances.trees,
        entrances.idx_images,
        entrances.idx_labels,
        entrances.parquet,
        entrances.models,
        entrances.model_headers,
        entrances.model_configurations,
        entrances.foreign,
        entrances.manifests,
        entrances.onnx_classifier,
        entrances.onnx_step,
        entrances.onnx_defended,
        entrances.onnx_descriptions,
        command.command_lines,
    )
}
