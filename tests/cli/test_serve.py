import sys

import pytest

import fastdef.serving


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--workers", 2], "--replicas needs --workers 1, got 2"),
        (["--page"], "--page needs one process, got --replicas"),
        (["--seed", 1], "--seed is for --replay"),
    ],
)
def test_what_does_not_go_with_replicas_is_refused(refuse, model_file, options, needed):
    assert needed in refuse("serve", model_file, "--replicas", 2, *options)


def test_without_ray_the_extra_is_named(refuse, monkeypatch, model_file, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fastdef.serving.cluster", raising=False)
    monkeypatch.delattr(fastdef.serving, "cluster", raising=False)
    (tmp_path / "image.png").write_bytes(b"none")

    for command in (["serve", model_file], ["defend", model_file, tmp_path / "image.png", "--out", tmp_path / "out"]):
        assert "pip install 'fastdef[ray]'" in refuse(*command, "--replicas", 2)
