"""The images that a model takes."""

from fastdef.checkpoint._file import Checkpoint

LARGEST = 8192  # pixels a side


def image_shape(checkpoint: Checkpoint, size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model takes: of ``size``, or as its file says.

    Raises:
        ValueError: if neither says.
    """
    channels = checkpoint.architecture["in_channels"]
    if size is not None:
        return channels, size, size
    stored = (checkpoint.training or {}).get("shape")
    if (
        not isinstance(stored, list)
        or len(stored) != 3
        or not all(isinstance(n, int) and 1 <= n <= LARGEST for n in stored)
    ):
        raise ValueError("a size is needed (--size), because the model file does not say what images it was trained on")
    return channels, stored[1], stored[2]
