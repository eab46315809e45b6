"""Whatever comes in: an answer that is right, or one line that says what is wrong. Never another exception."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdef._validate import check_images
from tests.fuzz.apart import Apart
from tests.fuzz.catalogue import ENTRANCES
from tests.fuzz.entrances import Entrance, check, export_to


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


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small export with its defense, which takes most of a minute."""
    folder = tmp_path_factory.mktemp("exported")
    export_to(folder, True)
    return folder


@pytest.fixture
def apart(tmp_path, request):
    if request.param in ("onnx_step", "onnx_defended", "onnx_descriptions"):
        shutil.copytree(request.getfixturevalue("exported"), tmp_path / "files")
    apart = Apart(request.param, tmp_path / "files")
    yield apart
    apart.close()


@pytest.mark.parametrize("apart", ENTRANCES, indirect=True)
def test_spoilt_bytes(apart):
    sound = apart.sanitize_images()

    @given(st.sampled_from(sound), edits)
    def enter(content, changes):
        apart.check(spoilt(content, changes))

    enter()


# Of every kind that JSON has, and some that only Python's has.
values = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    st.sampled_from([0, -1, 1, 2**31, 10**400, 1.5, "", "\ud800", "../x", [], {}, [1, 12, 12], {"name": 1}]),
)


def places(tree, way=()):
    """Every way down a tree of JSON."""
    yield way
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from places(child, (*way, key))


def replanted(content, changes):
    """A tree of JSON with values replaced, and where there is none left, cut off."""
    tree = {"root": json.loads(content)}
    for where, value in changes:
        ways = list(places(tree["root"], ("root",)))
        *way, last = ways[int(where * len(ways))]
        branch = tree
        for key in way:
            branch = branch[key]
        if value is ...:
            branch.pop(last)
        else:
            branch[last] = copy.deepcopy(value)
        tree.setdefault("root", None)
    return json.dumps(tree["root"]).encode()


@pytest.mark.parametrize("apart", ["model_configurations", "manifests", "onnx_descriptions"], indirect=True)
def test_descriptions_of_other_shapes_and_types(apart):
    (sound,) = apart.sanitize_images()

    @given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.just(...) | values), min_size=1, max_size=3))
    def enter(changes):
        apart.check(replanted(sound, changes))

    enter()


@pytest.mark.parametrize("apart", ["command_lines"], indirect=True)
def test_command_lines(apart):
    @given(st.binary(min_size=1, max_size=40))
    @example(b"")
    @example(b"\x10\xa9\x00")  # was --install-completion, which is no file of ours
    def enter(content):
        apart.check(content)

    enter()


@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool]),
)
def test_batches_of_any_shape_and_dtype(shape, dtype):
    """A shape that no network takes may be refused by the network, in its own words."""
    entrance = Entrance((), lambda _: check_images(torch.zeros(shape, dtype=dtype), where="here"))

    assert check(entrance, b"") == (len(shape) == 4 and 0 not in shape and dtype.is_floating_point)
