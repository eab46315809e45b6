import pytest
import torch


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5, 1.5])
def test_what_is_no_image_is_flagged_and_its_neighbours_are_bitwise_what_they_were(defense_for, model, images, bad):
    defense = defense_for(model, images, deterministic=True)
    spoilt = images.clone()
    spoilt[5, 0, 3, 3] = bad

    answers, expected = defense.defend(spoilt, on_invalid="flag"), defense.defend(images)

    others = torch.arange(len(images)) != 5
    assert answers.invalid.nonzero().flatten().tolist() == [5]
    assert not answers.converged[5]
    assert bool(answers.logits[5].isnan().all())
    assert torch.equal(answers.logits[others], expected.logits[others])
    assert torch.equal(answers.images[others], expected.images[others])
    assert not expected.invalid.any()


def test_a_stream_flags_what_is_no_image_in_its_place(defense_for, model, images):
    defense = defense_for(model, images)
    spoilt = [image if number % 7 else image * torch.nan for number, image in enumerate(images)]

    answers = list(defense.stream(iter(spoilt), on_invalid="flag"))

    assert [number for number, answer in enumerate(answers) if answer.invalid] == [0, 7, 14, 21]
    assert all(bool(answer.logits.isfinite().all()) != answer.invalid for answer in answers)
    with pytest.raises(ValueError, match="NaN or Inf"):
        list(defense.stream(iter(spoilt)))


def test_another_way_with_invalid_images_is_refused(defense_for, model, images):
    with pytest.raises(ValueError, match="on_invalid as 'raise' or 'flag', got 'skip'"):
        defense_for(model, images).defend(images, on_invalid="skip")


def test_a_stream_with_fewer_ids_than_images_is_refused_and_not_cut_short(defense_for, model, images):
    defense = defense_for(model, images)

    with pytest.raises(ValueError, match="an id for every image, got more images than ids"):
        list(defense.stream(iter(images[:3]), ids=[5, 6]))
