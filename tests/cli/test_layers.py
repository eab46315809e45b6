import json

from fastdef.assets import ASSETS


def test_the_layers_are_printed_the_suggested_one_first_and_written(run, tmp_path):
    arguments = ["--data", "fashion-mnist", "--root", ASSETS, "--limit", "8", "--json", tmp_path / "layers.json"]

    status, out, _ = run("layers", ASSETS / "smoothing.safetensors", *arguments)

    choices = json.loads((tmp_path / "layers.json").read_text())
    assert status == 0
    assert "lift" in out
    assert choices[0]["name"] == "block1"
    assert {"name", "features", "cost", "loss", "noised", "lift", "beta"} == set(choices[0])
