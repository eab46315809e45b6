import json

import torch

from fastdef.assets import ASSETS
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.nn import WideResNet


def test_a_foreign_checkpoint_is_imported(run, refuse, tmp_path):
    network = WideResNet(10, 1, num_classes=4)
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "theirs.pt")
    out = tmp_path / "ours.safetensors"

    status, told, _ = run(
        "import", tmp_path / "theirs.pt", "--architecture", "wrn-10-1", "--num-classes", 4, "--out", out
    )

    assert (status, told) == (0, f"wrote {out}\n")
    assert torch.equal(load(out).model.fc.weight, network.fc.weight)
    assert "ours" in refuse("import", out, "--architecture", "wrn-10-1", "--out", tmp_path / "again")


def test_what_stood_in_the_data_loader_of_a_foreign_checkpoint_can_be_given(run, refuse, tmp_path):
    torch.save(WideResNet(10, 1).state_dict(), tmp_path / "theirs.pt")
    command = ["import", tmp_path / "theirs.pt", "--architecture", "wrn-10-1", "--out", tmp_path / "ours.safetensors"]

    run(*command, "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--size", 32)

    found = load(tmp_path / "ours.safetensors")
    assert found.training == {"shape": [3, 32, 32]}
    torch.testing.assert_close(found.model.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(found.model.normalize.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert "--mean and --std go together" in refuse(*command, "--mean", "0.5,0.5,0.5")
    assert "--std needs a number for each channel" in refuse(*command, "--mean", "0,0,0", "--std", "a,b,c")
    assert "std as a list of 3 numbers" in refuse(*command, "--mean", "0,0,0", "--std", "1")


def test_an_import_says_which_weights_it_took_and_what_they_are_worth(run, refuse, tmp_path):
    shipped = load(ASSETS / "smoothing.safetensors")
    state = shipped.model.state_dict()
    torch.save({"last": {key: value * 0 for key, value in state.items()}, "best": state}, tmp_path / "theirs.pt")
    command = ["import", tmp_path / "theirs.pt", "--architecture", "wrn-10-2", "--in-channels", 1]
    command += ["--out", tmp_path / "ours", "--data", "fashion-mnist", "--root", ASSETS, "--limit", 300]
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS).subset(300)
    right = int((shipped.model(dataset.floats(0, 300)).argmax(1) == dataset.labels).sum())

    status, told, _ = run(*command, "--weights", "best", "--json", tmp_path / "figures.json")

    assert (status, right > 200) == (0, True)
    assert json.loads((tmp_path / "figures.json").read_text())["clean"]["correct"] == right
    assert told.splitlines()[0] == f"wrote {tmp_path / 'ours'}, of the weights 'best'"
    assert f"clean accuracy on fashion-mnist test: {right / 300:.1%} ({right}/300" in told
    (tmp_path / "ours").unlink()
    assert "--weights last" in refuse(*command)
    assert "images of the shape it was trained on, [1, 32, 32]" in refuse(*command, "--weights", "best", "--size", 32)
    assert not (tmp_path / "ours").exists()
