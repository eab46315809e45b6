"""Small files in the formats that the data sets really have."""

import io
import json

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet


def encode(image, ending="PNG"):
    """(C, H, W) uint8 -> bytes of a PNG or JPEG file."""
    array = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(array.numpy()).save(out, ending)
    return out.getvalue()


@pytest.fixture
def pictures():
    """A function: count, channels and size to (N, C, H, W) uint8 noise, the same each time."""

    def make(count, channels=3, size=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture
def save_picture():
    """A function that writes a (C, H, W) image as PNG or JPEG, by the file's ending, and makes its folder."""

    def save(file, image):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(image, "PNG" if file.suffix.lower() == ".png" else "JPEG"))
        return file

    return save


@pytest.fixture
def save_parquet():
    """A function that writes images and columns of labels as the hub does: {bytes, path} and whole numbers."""

    def save(file, images, labels, *, column="image", names=None):
        encoded = [image if isinstance(image, bytes) else encode(image) for image in images]
        table = pyarrow.table(
            {
                column: pyarrow.array(
                    [{"bytes": item, "path": f"{row}.png"} for row, item in enumerate(encoded)],
                    type=pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
                ),
                **labels,
            }
        )
        if names is not None:
            features = {"label": {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, file, row_group_size=7)
        return file

    return save
