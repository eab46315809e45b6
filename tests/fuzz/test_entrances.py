"""Whatever comes in: an answer that is right, or one line that says what is wrong. Never another exception."""

import io
import json
import math

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdef.checkpoint import import_foreign, load, save
from fastdef.data import decode_image, load_dataset, write_idx
from fastdef.defense import ActiveDefense
from fastdef.export.manifest import verified
from fastdef.nn import architecture_of, build, parse_architecture

CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module", autouse=True)
def profile(request):
    """200 inputs, unless the command line names a profile."""
    chosen = request.config.getoption("--hypothesis-profile")
    settings.load_profile(chosen or "few")
    yield
    settings.load_profile("default")


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "add", "cut", "zero"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def spoilt(content, changes):
    """Valid bytes with some of them changed, dropped, added, cut off or wiped."""
    content = bytearray(content)
    for kind, where, more in changes:
        place = int(where * max(1, len(content)))
        if kind == "flip" and content:
            content[place] ^= 1 + (more[0] if more else 0) % 255
        elif kind == "drop":
            del content[place : place + 1 + len(more)]
        elif kind == "add":
            content[place:place] = more
        elif kind == "cut":
            del content[place:]
        elif content:
            content[place : place + 16] = bytes(len(content[place : place + 16]))
    return bytes(content)


def in_one_line(act):
    """The result, or None for a refusal, which must be a ValueError of one line."""
    refusal = ""
    try:
        return act()
    except ValueError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1
    return None


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(parse_architecture("wrn-10-1", in_channels=1)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_model_files(model, folder):
    path, broken = folder / "model.safetensors", folder / "broken.safetensors"
    defense = ActiveDefense(model, beta=3.0, compile=False)
    save(path, model, architecture=architecture_of(model), classes=CLASSES, defense=defense.config())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @given(edits, st.booleans())
    def check(changes, in_header):
        """The header is where a file lies; most bytes are weights, of which any value is a weight."""
        broken.write_bytes(spoilt(whole[:header], changes) + whole[header:] if in_header else spoilt(whole, changes))
        found = in_one_line(lambda: load(broken))
        assert found is None or found.classes

    check()


def test_foreign_checkpoints(model, folder):
    buffer, broken = io.BytesIO(), folder / "broken.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, buffer)

    @given(edits)
    def check(changes):
        broken.write_bytes(spoilt(buffer.getvalue(), changes))
        in_one_line(lambda: import_foreign(broken, architecture_of(model)))

    check()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_image_files(kind):
    buffer = io.BytesIO()
    pixels = (torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    Image.fromarray(pixels).save(buffer, kind)

    @given(edits)
    def check(changes):
        found = in_one_line(lambda: decode_image(spoilt(buffer.getvalue(), changes), channels=1, size=(12, 12)))
        assert found is None or (found.shape == (1, 12, 12) and found.min() >= 0 and found.max() <= 1)

    check()


@pytest.mark.parametrize("part", ["images", "labels"])
def test_idx_files(folder, part):
    root = folder / f"idx-{part}"
    root.mkdir()
    write_idx(root, "test", torch.randint(0, 256, (3, 1, 28, 28)).to(torch.uint8), torch.arange(3))
    path = next(root.glob(f"*{part}*"))
    whole = path.read_bytes()

    @given(edits)
    def check(changes):
        path.write_bytes(spoilt(whole, changes))
        found = in_one_line(lambda: load_dataset("fashion-mnist", "test", root=root))
        assert found is None or (len(found.images) == len(found.labels) and int(found.labels.max()) < 10)

    check()


def test_parquet_files(folder):
    root = folder / "parquet"
    root.mkdir()
    path = root / "test-00000-of-00001.parquet"
    buffer = io.BytesIO()
    Image.fromarray(torch.randint(0, 256, (32, 32, 3)).to(torch.uint8).numpy()).save(buffer, "PNG")
    rows = {"img": [{"bytes": buffer.getvalue(), "path": None}] * 3, "label": [0, 1, 9]}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    whole = path.read_bytes()
    assert len(load_dataset("cifar10", "test", root=root)) == 3

    @given(edits)
    def check(changes):
        path.write_bytes(spoilt(whole, changes))
        found = in_one_line(lambda: load_dataset("cifar10", "test", root=root))
        assert found is None or found.images.shape[1:] == (3, 32, 32)

    check()


def test_descriptions_of_exports(folder):
    place = folder / "export"
    place.mkdir()
    (place / "step.onnx").write_bytes(b"a model")
    whole = json.dumps({"files": {"step.onnx": {"sha256": "0" * 64}}, "opset": 20}).encode()

    @given(edits)
    def check(changes):
        (place / "model.json").write_bytes(spoilt(whole, changes))
        with pytest.raises(ValueError, match=r".") as refused:  # the hash is wrong, so nothing may pass
            verified(place / "step.onnx")
        assert "\n" not in str(refused.value)

    check()


def test_image_batches(model):
    defense = ActiveDefense(model, beta=3.0, max_steps=3, compile=False, slots=4, deterministic=True)
    sound = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = defense.defend(sound)
    values = st.one_of(st.floats(width=32), st.floats(0, 1, width=32))

    @given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 143), values), min_size=1, max_size=4))
    def check(which, pixels):
        images = sound.clone()
        for place, value in pixels:
            images[which].view(-1)[place] = value
        found = defense.defend(images, on_invalid="flag")
        row = images[which]
        valid = all(math.isfinite(v) and 0 <= v <= 1 for v in row.flatten().tolist())
        assert found.invalid.tolist() == [number == which and not valid for number in range(3)]
        others = [number for number in range(3) if number != which]
        assert torch.equal(found.logits[others], expected.logits[others])
        if not valid:
            assert in_one_line(lambda: defense.defend(images)) is None

    check()


@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool]),
)
def test_batches_of_any_shape_and_dtype(shape, dtype):
    """A shape that no network takes may be refused by the network, in its own words."""
    from fastdef._check import check_images

    found = in_one_line(lambda: check_images(torch.zeros(shape, dtype=dtype), where="here") or True)

    assert (found is True) == (len(shape) == 4 and 0 not in shape and dtype.is_floating_point)
