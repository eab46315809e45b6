"""In 16 bit the classifier is a copy of the model, as it is then; its images and logits stay float32."""

import copy
import warnings

import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet
from fastdef.runtime.classifier import reduced_classifier
from tests.runtime.networks import FALLS_BACK, TRACED

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def images():
    return torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def wide():
    torch.manual_seed(0)
    model = WideResNet(10, 1)
    model(torch.rand(32, 3, 12, 12))  # running statistics of its own
    return model.eval()


def rounded(model, images, dtype):
    """What the model itself says in 16 bit."""
    with torch.no_grad():
        return copy.deepcopy(model).to(dtype)(images.to(dtype)).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_number_of_images_is_classified_in_16_bit(wide, images, dtype, size):
    classify = reduced_classifier(wide, images[:1], dtype=dtype, compile=False)

    with torch.no_grad():
        logits, exact = classify(images[:size]), wide(images[:size])

    spread = float(exact.std())
    assert logits.dtype == torch.float32
    assert 0 < float((logits - exact).abs().max()) < 16 * torch.finfo(dtype).eps * spread
    assert not torch.equal(logits, exact)


def test_so_it_is_compiled_for_one_image_and_for_several(wide, images):
    plain = reduced_classifier(wide, images, dtype=torch.bfloat16, compile=False)
    compiled = reduced_classifier(wide, images, dtype=torch.bfloat16, compile=True)

    for size in (1, 3, 5):
        with torch.no_grad():
            torch.testing.assert_close(compiled(images[:size]), plain(images[:size]), rtol=0, atol=0.05)
    assert compiled is not plain


@pytest.mark.parametrize("name", TRACED)
def test_networks_of_every_kind_are_within_rounding(name, images):
    model = TRACED[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        classify = reduced_classifier(model, images, dtype=torch.bfloat16, compile=False)

    with torch.no_grad():
        exact = model(images)
        apart = (classify(images) - exact).norm() / exact.norm()
    allowed = max(0.02, 4 * float((rounded(model, images, torch.bfloat16) - exact).norm() / exact.norm()))
    assert apart < allowed


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of what a trace has for values
@pytest.mark.parametrize("name", ["a mean by numpy", "a branch by value"])
def test_a_classifier_that_cannot_be_traced_stays_what_it_is_and_says_so(name, images):
    model = FALLS_BACK[name]()

    with pytest.warns(RuntimeWarning, match="the classifier cannot be traced, so it stays in float32"):
        assert reduced_classifier(model, images, dtype=torch.bfloat16, compile=False) is model


class InParts(nn.Module):
    """Is one trace up to a size, and another beyond."""

    def forward(self, x):
        return torch.cat([part.mean((2, 3)) for part in x.split(16)])


def test_it_is_judged_at_the_largest_size_too(images):
    model = InParts()

    with pytest.warns(RuntimeWarning, match="stays in float32"):
        assert reduced_classifier(model, images, dtype=torch.bfloat16, compile=False, largest=20) is model


class OfTheBatch(nn.Module):
    """Is traced without a complaint, and holds for one batch size."""

    def forward(self, x):
        return x.mean((2, 3)) * (len(x) / 7)


def test_a_trace_that_is_not_the_model_is_not_used(images):
    model = OfTheBatch()

    with pytest.warns(RuntimeWarning, match=r"stays in float32: its trace is .*% off"):
        assert reduced_classifier(model, images, dtype=torch.bfloat16, compile=False) is model


def logits(defense, images):
    return defense.defend(images, ids=torch.arange(len(images))).logits


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_defense_classifies_in_its_dtype_and_one_in_float32_is_the_model_itself(wide, images, dtype):
    defenses = {kind: ActiveDefense(wide, delta=1e9, compile=False, dtype=kind) for kind in (torch.float32, dtype)}
    noised = defenses[dtype].noised(images)  # no step is taken

    assert torch.equal(logits(defenses[torch.float32], images), wide(noised).log_softmax(1))
    reduced = reduced_classifier(wide, images, dtype=dtype, compile=False)
    assert torch.equal(logits(defenses[dtype], images), reduced(noised).log_softmax(1))


def test_a_model_that_changes_is_classified_by_anew(wide, images):
    defense = ActiveDefense(wide, delta=1e9, compile=False, dtype=torch.bfloat16)
    before = logits(defense, images)

    with torch.no_grad():
        wide.fc.weight.mul_(-1)

    assert float((logits(defense, images) - before).abs().max()) > 0.1
