"""Every way in from outside, as a function of bytes: it works, or refuses with one ValueError of one line."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image, ImageCms
from torch import nn

from fastdef.checkpoint import Checkpoint, import_foreign, load, save
from fastdef.data import decode_image, load_dataset, write_idx
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.manifest import verified
from fastdef.export.target import exported_target
from fastdef.export.triton_repository import write_repository
from fastdef.nn import architecture_of, build, parse_architecture

CLASSES = tuple("abcdefghij")
SHAPE = (1, 12, 12)


@dataclass(frozen=True)
class Entrance:
    """A way in.

    Attributes:
        sound: inputs that are taken.
        enter: takes one, and asserts that what it gives is right; raises a ValueError for a refusal.
    """

    sound: tuple[bytes, ...]
    enter: Callable[[bytes], object]


def check(entrance: Entrance, content: bytes) -> bool:
    """Whether it was taken; anything but that or a refusal in one line raises."""
    try:
        entrance.enter(content)
    except ValueError as error:
        refusal = str(error)
    else:
        return True
    assert len(refusal.splitlines()) == 1, refusal
    return False


def _model() -> nn.Module:
    torch.manual_seed(0)
    return build(parse_architecture("wrn-10-1", in_channels=1)).eval()


def _image(*, kind: str, mode: str, size: int, **told: Any) -> bytes:
    buffer, generator = io.BytesIO(), torch.Generator().manual_seed(0)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    Image.fromarray(torch.randint(0, 256, shape, generator=generator).to(torch.uint8).numpy()).save(
        buffer, kind, **told
    )
    return buffer.getvalue()


def image_batches(folder: Path) -> Entrance:
    """Float32 pixels: what is not an image is flagged, and its neighbours' answers do not move by a bit."""
    defense = ActiveDefense(_model(), beta=3.0, max_steps=3, compile=False, slots=4, deterministic=True)
    sound = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected, whole = defense.defend(sound), sound.numpy().tobytes()

    def enter(content: bytes) -> None:
        content = content[: len(whole)] + whole[len(content) :]
        images = torch.frombuffer(bytearray(content), dtype=torch.float32).view(sound.shape)
        found = defense.defend(images, on_invalid="flag")
        valid = [all(0 <= value <= 1 + 2**-23 for value in image.flatten().tolist()) for image in images]  # NaN is not
        assert found.invalid.tolist() == [not sane for sane in valid]
        same = [number for number in range(3) if torch.equal(images[number], sound[number])]
        assert torch.equal(found.logits[same], expected.logits[same])
        if not all(valid):
            defense.defend(images)
            raise AssertionError("an image that is none was taken")

    return Entrance((whole,), enter)


def images(folder: Path) -> Entrance:
    """Image files: bare, and with what says how they are to be shown."""

    def enter(content: bytes) -> None:
        found = decode_image(content, channels=1, size=SHAPE[1:])
        assert found.shape == SHAPE
        assert 0 <= found.min() <= found.max() <= 1

    bare = [_image(kind=kind, mode="L", size=12) for kind in ("PNG", "JPEG", "BMP", "PPM")]
    tag = b"Exif\0\0II*\0" + bytes([8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0])
    told = {"exif": tag, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    telling = [_image(kind=kind, mode="RGB", size=12, **told) for kind in ("PNG", "JPEG")]
    return Entrance((*bare, *telling, _image(kind="WEBP", mode="RGB", size=12, lossless=True)), enter)


def trees(folder: Path) -> Entrance:
    """A folder of images by class: a file of it, and where it lies, are hostile."""
    sound = _image(kind="PNG", mode="L", size=12)
    place = folder / "tree"

    def enter(content: bytes) -> None:
        name, _, image = content.partition(b"\n")
        path = place / "test" / name.decode(errors="surrogateescape").replace("/..", "").lstrip("/.")
        shutil.rmtree(place, ignore_errors=True)
        (place / "test" / "cat").mkdir(parents=True)
        (place / "test" / "cat" / "sound.png").write_bytes(sound)
        with contextlib.suppress(OSError, ValueError):  # a name that the system takes for none
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        found = load_dataset("any", "test", root=place)
        assert found.images.shape[1:] == SHAPE
        assert len(found.images) == len(found.labels) <= 2
        assert found.classes[0] == "cat" or len(found.classes) == 2

    names = (b"cat/1.png", b"cat/deep/1.webp", b"dog/1.png", b"stray.png", b"cat/1.tif")
    return Entrance(tuple(name + b"\n" + sound for name in names), enter)


def _idx(folder: Path, part: str) -> Entrance:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 1, 28, 28), generator=generator).to(torch.uint8)
    write_idx(folder, "test", pixels, torch.arange(3))
    path = next(folder.glob(f"*{part}*"))

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        found = load_dataset("fashion-mnist", "test", root=folder)
        assert len(found.images) == len(found.labels)
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 10

    return Entrance((path.read_bytes(),), enter)


def idx_images(folder: Path) -> Entrance:
    """Fashion-MNIST's image file."""
    return _idx(folder, "images")


def idx_labels(folder: Path) -> Entrance:
    """Fashion-MNIST's label file."""
    return _idx(folder, "labels")


def parquet(folder: Path) -> Entrance:
    """A data set as the hub has it."""
    path = folder / "test-00000-of-00001.parquet"
    rows = {"img": [{"bytes": _image(kind="PNG", mode="RGB", size=32), "path": None}] * 3, "label": [0, 1, 9]}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        found = load_dataset("cifar10", "test", root=folder)
        assert found.images.shape[1:] == (3, 32, 32)
        assert len(found.images) == len(found.labels)
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 10

    return Entrance((path.read_bytes(),), enter)


def models(folder: Path) -> Entrance:
    """Model files."""
    path, model = folder / "model.safetensors", _model()
    defense = ActiveDefense(model, beta=3.0, compile=False)
    save(path, model, architecture=architecture_of(model), classes=CLASSES, defense=defense.config())

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        found = load(path)
        assert found.classes
        if found.defense is not None:
            ActiveDefense.from_checkpoint(found, compile=False)

    return Entrance((path.read_bytes(),), enter)


def model_headers(folder: Path) -> Entrance:
    """The header of a model file, which is where a file lies: most of its bytes are weights, and any will do."""
    whole = models(folder)
    (content,) = whole.sound
    end = 8 + int.from_bytes(content[:8], "little")
    return Entrance((content[:end],), lambda header: whole.enter(header + content[end:]))


def model_configurations(folder: Path) -> Entrance:
    """The JSON in a model file's header."""
    from safetensors.torch import load as tensors_of
    from safetensors.torch import save as serialize

    whole = models(folder)
    (content,) = whole.sound
    tensors = tensors_of(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    ((key, text),) = header["__metadata__"].items()

    def enter(content: bytes) -> None:
        whole.enter(serialize(tensors, metadata={key: content.decode(errors="replace")}))

    return Entrance((text.encode(),), enter)


def foreign(folder: Path) -> Entrance:
    """Checkpoints of other code: pickles, of which nothing is executed."""
    path, model = folder / "model.pt", _model()
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, buffer)

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        import_foreign(path, architecture_of(model))

    return Entrance((buffer.getvalue(),), enter)


def _exported(folder: Path, *, defended: bool) -> None:
    """An export; what an earlier process made is taken, for it takes seconds.

    In a process of its own: torch.export does not see through what Atheris makes of the code it follows.
    """
    if (folder / "model.json").is_file():
        return
    words = [sys.executable, "-c", f"from {__name__} import export_to; export_to({str(folder)!r}, {defended})"]
    root = Path(__file__).parents[2]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": str(root)})


def export_to(folder: str, defended: bool) -> None:
    """A small model's export, with its Active Defense or without."""
    model = _model()
    defense = ActiveDefense(model, beta=3.0, max_steps=3, compile=False)
    defense.calibrate(torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)))
    config = defense.config() if defended else None
    export_onnx(Checkpoint(model, architecture_of(model), CLASSES, config, None), Path(folder), shape=SHAPE)


def _onnx(folder: Path, name: str, answer: Callable[[], torch.Tensor]) -> Entrance:
    """A file of an export whose description tells the sha256 of what is there, so that the bytes reach the parser."""
    path, manifest = folder / name, folder / "model.json"
    sound, described = path.read_bytes(), json.loads(manifest.read_text())

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        described["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
        manifest.write_text(json.dumps(described))
        probabilities = answer()
        assert probabilities.shape == (3, len(CLASSES))

    def enter_and_mend(content: bytes) -> None:
        try:
            enter(content)
        finally:
            path.write_bytes(sound)
            described["files"][name]["sha256"] = hashlib.sha256(sound).hexdigest()
            manifest.write_text(json.dumps(described))

    return Entrance((sound,), enter_and_mend)


def onnx_classifier(folder: Path) -> Entrance:
    """The file of an export without a defense."""
    _exported(folder, defended=False)
    images = torch.rand(3, *SHAPE)
    return _onnx(folder, "classifier.onnx", lambda: exported_target(folder).answer(images, torch.arange(3)).logits)


def onnx_step(folder: Path) -> Entrance:
    """The step that the runtime drives."""
    _exported(folder, defended=True)
    images = torch.rand(3, *SHAPE)
    return _onnx(folder, "step.onnx", lambda: exported_target(folder).answer(images, torch.arange(3)).logits)


def onnx_defended(folder: Path) -> Entrance:
    """The whole in one file, with its loop."""
    _exported(folder, defended=True)
    images = torch.rand(3, *SHAPE).numpy()

    def answer() -> torch.Tensor:
        with load_engine(folder) as engine:
            return torch.from_numpy(engine(images).probabilities)

    return _onnx(folder, "defended.onnx", answer)


def onnx_descriptions(folder: Path) -> Entrance:
    """What a file of an export tells of itself, inside."""
    import onnx

    _exported(folder, defended=True)
    images = torch.rand(3, *SHAPE)
    name = "step.onnx"
    whole = _onnx(folder, name, lambda: exported_target(folder).answer(images, torch.arange(3)).logits)
    proto = onnx.load(folder / name)
    (described,) = (prop.value for prop in proto.metadata_props if prop.key == "fastdef")

    def enter(content: bytes) -> None:
        onnx.helper.set_model_props(proto, {"fastdef": content.decode(errors="replace")})
        whole.enter(proto.SerializeToString())

    return Entrance((described.encode(),), enter)


def manifests(folder: Path) -> Entrance:
    """A ``model.json``: it never makes a file pass that it does not name, nor stops a repository with a traceback."""
    _exported(folder / "export", defended=False)
    place = folder / "export"
    manifest = place / "model.json"
    sound = manifest.read_bytes()
    whole = (place / "classifier.onnx").read_bytes()
    digest = hashlib.sha256(whole).hexdigest()

    def enter(content: bytes) -> None:
        manifest.write_bytes(content)
        if digest.encode() in content:
            verified(place / "classifier.onnx")
            write_repository(place, folder / "repository")
        else:
            verified(place / "classifier.onnx")
            raise AssertionError("a file passed that is not named")

    def enter_and_mend(content: bytes) -> None:
        try:
            enter(content)
        finally:
            manifest.write_bytes(sound)

    return Entrance((sound,), enter_and_mend)
