"""How an export is opened; what it answers is in test_files.py."""

import pytest

from fastdef.export.engine import load_engine


@pytest.mark.parametrize(
    ("path", "options", "needed"),
    [
        ("v2", {}, "what `fastdef export` wrote"),
        ("defnded.onnx", {"driven": True}, "what `fastdef export` wrote"),
        ("", {"providers": []}, "at least one provider"),
        ("", {"driven": True, "slots": 0}, "slots > 0"),
    ],
)
def test_what_names_no_engine_is_refused_and_no_other_opened(folder, path, options, needed):
    with pytest.raises(ValueError, match=needed):
        load_engine(folder / path, **options)


def test_a_seed_that_is_no_whole_number_is_refused(folder, images):
    with load_engine(folder, driven=True) as engine, pytest.raises(ValueError, match="a seed from 0 up"):
        engine(images.numpy(), seed=1.5)
