import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastdef.checkpoint import import_foreign, load, save
from fastdef.nn import architecture_of, build, parse_architecture

WRN = parse_architecture("wrn-10-1", num_classes=3)
MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


@pytest.fixture
def state():
    torch.manual_seed(0)
    model = build(WRN)
    model(torch.rand(4, 3, 16, 16))
    return model.state_dict()


def prefixed(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def trades(state):
    """What TRADES stores: trained under DataParallel, with a copy of the first group that it never calls."""
    unused = {key.replace("block1", "sub_block1"): value + 1 for key, value in state.items() if "block1" in key}
    return prefixed("module.")(state | unused)


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        prefixed("module."),
        prefixed("model."),
        prefixed("module.model."),
        prefixed("_orig_mod."),
        trades,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": prefixed("module.")(state)},
        lambda state: {"net": state, "acc": 0.5},
        lambda state: {"epoch": 1, "model": {"state_dict": state}},
        lambda state: {"rmodel": {"n_classes": torch.tensor(3), **prefixed("model.")(state)}, "optimizer": {}},
        lambda state: {"model_ema": state, "model": {"name": "wrn"}},
        lambda state: {"args": argparse.Namespace(lr=0.1, out=Path("a")), "state_dict": state},
        lambda state: {"acc": np.float64(0.5), "best": np.array([1, 2]), "net": OrderedDict(state)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {key: nn.Parameter(v) if v.is_floating_point() else v for key, v in state.items()},
    ],
)
def test_weights_are_found_in_every_wrapping(path, state, wrap):
    torch.save(wrap(state), path)

    model = import_foreign(path, WRN)

    assert not model.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]) or key.endswith("num_batches_tracked"), key


def test_a_missing_batch_counter_is_zero(path, state):
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)

    assert import_foreign(path, WRN).bn1.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_become_float32(path, state, dtype):
    torch.save({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}, path)

    assert import_foreign(path, WRN).conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state | {"mean": MEAN.view(1, 3, 1, 1), "std": STD.view(1, 3, 1, 1)},
        lambda state: prefixed("module.")(state | {"mu": MEAN, "sigma": STD}),
        lambda state: (
            {"normalizer.new_mean": MEAN.view(3, 1, 1), "normalizer.new_std": STD} | prefixed("model.")(state)
        ),
        lambda state: {"0.mean": MEAN, "0.std": STD} | prefixed("1.")(state),
    ],
)
@pytest.mark.parametrize("asked", [{}, {"mean": MEAN.tolist(), "std": STD.tolist()}])
def test_constants_in_the_file_become_the_models(tmp_path, path, state, wrap, asked):
    torch.save(wrap(state), path)

    model = import_foreign(path, WRN | asked)

    assert torch.equal(model.normalize.mean.flatten(), MEAN)
    assert torch.equal(model.normalize.std.flatten(), STD)
    save(tmp_path / "ours", model, architecture=architecture_of(model), classes=("a", "b", "c"))
    assert load(tmp_path / "ours").architecture["mean"] == MEAN.tolist()


def test_one_constant_for_all_channels_is_spread(path, state):
    torch.save(state | {"mean": torch.tensor(0.5), "std": torch.tensor(0.25)}, path)

    assert import_foreign(path, WRN).normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_constants_of_the_architecture_are_used_where_the_file_has_none(path, state):
    torch.save(state, path)

    model = import_foreign(path, WRN | {"mean": MEAN.tolist(), "std": STD.tolist()})

    assert torch.equal(model.normalize.mean.flatten(), MEAN)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("wrap", "need"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "bn1.weight"}, "lacks the tensor 'bn1.weight'"),
        (lambda s: s | {"fc2.bias": torch.ones(1)}, "'fc2.bias' is not one of the model's"),
        (lambda s: s | {"fc.bias": torch.ones(10)}, r"'fc.bias' needs shape \(3,\), got \(10,\)"),
        (lambda s: s | {"fc.bias": torch.ones(3, dtype=torch.int32)}, "'fc.bias' needs to be of torch.float32"),
        (lambda s: s | {"fc.bias": torch.ones(3).to_sparse()}, "'fc.bias' needs to be dense"),
        (lambda s: s | {"fc.bias": torch.ones(3, device="meta")}, "'fc.bias' needs to be dense and stored"),
        (lambda s: s | {"module.fc.bias": torch.ones(3)}, "holds 'fc.bias' twice"),
        (lambda s: s | {"fc.bias": 3}, "got a int at 'fc.bias'"),
        (lambda s: s | {"mean": MEAN}, "std as a list of 3 numbers, got None"),
        (lambda s: s | {"mean": MEAN, "std": torch.zeros(3)}, "stds > 0"),
        (lambda s: s | {"mean": torch.ones(4), "std": STD}, r"'mean' needs 1 or 3 numbers, got shape \(4,\)"),
        (lambda s: {}, "a dictionary of tensors, got a dict"),
        (lambda s: [1, 2], "a dictionary of tensors, got a list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(path, state, wrap, need):
    torch.save(wrap(state), path)

    with pytest.raises(ValueError, match=f"cannot import {path}: .*{need}"):
        import_foreign(path, WRN)


def test_constants_that_contradict_the_architecture_are_refused(path, state):
    torch.save(state | {"mean": MEAN, "std": STD}, path)

    with pytest.raises(ValueError, match=r"'mean' is .* but the architecture's mean is"):
        import_foreign(path, WRN | {"mean": [0.5, 0.5, 0.5], "std": STD.tolist()})


@pytest.mark.parametrize("names", [("last", "best"), ("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_several_sets_of_weights_the_one_that_is_named_is_taken_and_none_in_silence(path, state, names):
    first, second = names
    other = {key: value + 1 for key, value in state.items()}
    torch.save({first: state, second: other}, path)

    assert torch.equal(import_foreign(path, WRN, weights=first).fc.bias, state["fc.bias"])
    assert torch.equal(import_foreign(path, WRN, weights=second).fc.bias, other["fc.bias"])
    with pytest.raises(ValueError, match=f"several sets of weights, {first}, {second}; choose one.* --weights {first}"):
        import_foreign(path, WRN)
    with pytest.raises(ValueError, match=f"weights called 'ema', got {first}, {second}"):
        import_foreign(path, WRN, weights="ema")


def test_sets_within_sets_are_named_by_their_path(path, state):
    torch.save({"model": {"last": state, "best": {"state_dict": state}}, "epoch": 3}, path)

    import_foreign(path, WRN, weights="model.best.state_dict")

    with pytest.raises(ValueError, match=r"model\.last, model\.best\.state_dict; choose one"):
        import_foreign(path, WRN)


def test_what_a_script_kept_beside_the_weights_is_read_without_being_made(path, state, monkeypatch):
    torch.save({"args": argparse.Namespace(lr=0.1), "state_dict": state}, path)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_, **__: pytest.fail("it ran"))

    import_foreign(path, WRN)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):  # and afterwards torch trusts no more
        torch.load(path, weights_only=True)


def spoiled(key, value):
    def spoil(state):
        tensor = state[key].clone()
        tensor.view(-1)[1] = value
        return state | {key: tensor}

    return spoil


@pytest.mark.parametrize(
    ("wrap", "need"),
    [
        (spoiled("fc.weight", float("nan")), "'fc.weight' needs finite numbers, got 1 of 192 that are not"),
        (spoiled("bn1.running_mean", float("-inf")), "'bn1.running_mean' needs finite numbers"),
        (lambda s: s | {"fc.bias": torch.tensor([1e39, 0, 0], dtype=torch.float64)}, "'fc.bias' needs finite numbers"),
        (spoiled("bn1.running_var", -0.5), "'bn1.running_var' needs variances of 0 or more, got -0.5"),
    ],
)
def test_weights_of_a_training_that_diverged_are_refused_by_name(path, state, wrap, need):
    torch.save(wrap(state), path)

    with pytest.raises(ValueError, match=f"^cannot import {path}: its tensor {need}[^\n]*$"):
        import_foreign(path, WRN)


def test_a_pickle_that_holds_itself_is_refused(path):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, path)

    with pytest.raises(ValueError, match=f"^cannot import {path}"):
        import_foreign(path, WRN)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path, path):
    torch.save({"state_dict": Hostile(str(tmp_path / "owned"))}, path)

    with pytest.raises(ValueError, match=r"its pickle asks for \w+\.mkdir, which is neither weights nor inert data"):
        import_foreign(path, WRN)

    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:1000], lambda b: b[1000:], lambda b: b"PK" + b, pickle.dumps]
)
def test_a_damaged_file_is_refused_in_one_line(path, state, damage):
    torch.save(state, path)
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ValueError, match=f"^cannot import {path}: [^\n]*$"):
        import_foreign(path, WRN)


def test_no_file_and_an_impossible_architecture_are_refused(path, state):
    with pytest.raises(ValueError, match="there is no such file"):
        import_foreign(path, WRN)

    torch.save(state, path)
    with pytest.raises(ValueError, match="depth of 6n"):
        import_foreign(path, WRN | {"depth": 11})
