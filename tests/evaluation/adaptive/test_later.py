"""Row 8: later attacks, where the best of each is known."""

import pytest
import torch

from fastdef.attacks import QueryResult
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.rows import later
from tests.evaluation.adaptive.linear import GUARDED, IMAGES, LEAST, LINEAR, PLAIN, SIDE, asked, cases


def test_the_probability_margin_is_what_it_says(tiny, batch, monkeypatch):
    case = cases(later, GUARDED, tiny, eps=LEAST)["probability margin, APGD"]
    (ask,) = asked(monkeypatch, case, batch)
    p = LINEAR(batch.images).softmax(1)

    found = ask(batch.images, torch.arange(IMAGES))

    torch.testing.assert_close(found.loss, p[:, 1:].amax(1) - p[:, 0])


def test_smooth_changes_turn_a_linear_model_where_such_can_and_are_smooth(tiny, batch):
    """A block of 4 x 4 is the whole image here: only the weights' sum counts."""
    least = 0.3 / abs(float(LINEAR.weight.sum()))

    for factor, stands in ((1.05, 0), (0.95, IMAGES)):
        (made,) = cases(later, PLAIN, tiny, eps=factor * least)[later.SMOOTH].craft(batch)
        change = made - batch.images

        assert int((LINEAR(made).argmax(1) == 0).sum()) == stands
        assert float(change.std((1, 2, 3)).max()) < 1e-6
        assert float(change.abs().max()) <= factor * least + 1e-6


def test_a_block_s_gradient_is_the_sum_of_its_pixels_and_no_pixel_leaves_its_range():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # some leave [0, 1] by the change
    weight = torch.rand(1, 8, 8)

    def ask(x, rows):
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        return QueryResult((x * weight).flatten(1).sum(1), weight.expand_as(x), torch.ones(len(x)))

    found = later.in_blocks(ask, images)(torch.full((1, 1, 2, 2), 0.9), torch.tensor([1]))

    moves = (images[1:] + 0.4 < 1).float()
    assert 0 < moves.mean() < 1
    torch.testing.assert_close(found.gradient, torch.nn.functional.avg_pool2d(weight * moves, 4) * 16)


class OneSided(torch.nn.Module):
    """Its noise moves every image far to the one side or the other: known noise leaves nothing, unknown half."""

    def forward(self, images, ids, steps=None):
        side = torch.where(((ids * 2654435761) >> 20) % 2 == 0, 1.0, -1.0)
        return images + 0.05 * side.view(-1, 1, 1, 1) * LINEAR.weight.sign().view(1, 1, SIDE, SIDE)


def test_who_knows_the_noise_attacks_the_noise_that_is_drawn(tiny, batch):
    seen = []

    def purify(images, ids):
        seen.append(ids)
        return OneSided()(images, ids)

    target = Target.purified(LINEAR, purify, random=True)
    eps = 1.05 * LEAST + 0.05  # more than the noise takes back
    case = cases(later, target, tiny, eps=eps)[later.KNOWN]
    (made,) = case.craft(batch)
    attacked = {int(one) for ids in seen for one in ids}
    seen.clear()
    found = case.evaluate(batch, made, 7, SeedStream.EVALUATION)

    assert attacked == {int(one) for ids in seen for one in ids}  # one draw of each image, and the same
    assert found.right.shape == (IMAGES, 1)
    assert not found.right.any()
    assert not case.counts


@pytest.mark.parametrize("target", [PLAIN, Target.plain(LINEAR, random=True)], ids=["none", "without ids"])
def test_noise_that_there_is_not_or_that_no_id_names_cannot_be_known(target, tiny):
    assert later.KNOWN not in cases(later, target, tiny, eps=LEAST)
