"""The attack of an evaluation, on classifiers whose answers can be told in the head."""

import pytest
import torch
from torch import nn

from fastdef.attacks import cross_entropy, fgsm, margin, pgd
from fastdef.evaluation import Accuracy, Attack, accuracy, attacked_batches
from fastdef.evaluation.attack import gradients_vanished
from tests.evaluation.tiny import Brighter, Fickle, dataset, images


def labels(*values):
    return torch.tensor(values)


def test_an_attack_without_arguments_is_pgd_20_at_8_255ths_by_two_losses():
    attack = Attack()

    assert (attack.eps, attack.steps, attack.step) == (8 / 255, 20, None)
    assert attack.losses == ("cross_entropy", "margin")


def test_losses_have_to_be_named():
    with pytest.raises(ValueError, match="needs losses among cross_entropy, margin, got none"):
        Attack(losses=())


def test_of_several_losses_one_that_is_unknown_is_enough_to_refuse_them():
    with pytest.raises(ValueError, match="got margin, hinge"):
        Attack(losses=("margin", "hinge"))


@pytest.mark.parametrize("eps", [1.0, 1e-6])
def test_a_radius_of_up_to_the_whole_range_is_taken(eps):
    assert Attack(eps=eps).eps == eps


def test_one_step_is_fgsm_from_the_image_itself():
    given, classes = images(0.6, 0.3), labels(0, 1)

    found = Attack(eps=0.05, steps=1)(Brighter(), given, classes)

    assert torch.equal(found, fgsm(Brighter(), given, classes, eps=0.05))


@pytest.mark.parametrize("steps", [2, 3])
def test_more_steps_begin_anywhere_in_the_ball_and_are_of_two_and_a_half_radii_together(steps):
    given, classes = images(0.9, 0.2), labels(0, 1)

    found = Attack(eps=0.1, steps=steps, losses=("cross_entropy",))(Brighter(), given, classes)

    generator = torch.Generator().manual_seed(0)
    step = min(0.1, 0.25 / steps)
    expected = pgd(Brighter(), given, classes, eps=0.1, step=step, steps=steps, generator=generator)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("seed", "batch"), [(0, 0), (0, 1), (1, 0), (3, 4)])
def test_every_batch_of_every_seed_begins_elsewhere(seed, batch):
    given, classes, small = images(0.9, 0.2), labels(0, 1), {"eps": 0.1, "step": 0.01, "steps": 2}

    found = Attack(seed=seed, losses=("margin",), **small)(Brighter(), given, classes, batch=batch)

    generator = torch.Generator().manual_seed(seed * 1_000_003 + batch)
    assert torch.equal(found, pgd(Brighter(), given, classes, loss=margin, generator=generator, **small))


def test_a_step_that_is_given_is_taken():
    given, classes = images(0.9, 0.1), labels(0, 1)

    found = Attack(eps=0.5, steps=1, step=0.125)(Brighter(), given, classes)

    torch.testing.assert_close(found, images(0.775, 0.225))


def test_a_batch_without_a_number_is_the_first():
    given, classes, attack = images(0.6, 0.3), labels(0, 1), Attack(eps=0.1, steps=2, step=0.01)

    assert torch.equal(attack(Brighter(), given, classes), attack(Brighter(), given, classes, batch=0))
    assert torch.equal(attack.run(Brighter(), given, classes).images, attack(Brighter(), given, classes, batch=0))


def test_the_first_loss_that_fells_every_image_is_the_last_to_be_tried():
    attacked = Attack(eps=0.2, steps=2).run(Brighter(), images(0.6, 0.4), labels(0, 1))

    assert list(attacked.gradients) == ["cross_entropy"]
    assert Brighter()(attacked.images).argmax(1).tolist() == [1, 0]


def test_a_later_loss_meets_what_still_stands_alone():
    attacked = Attack(eps=0.2, steps=3).run(Brighter(), images(0.6, 0.9, 1.0), labels(0, 0, 0))

    assert {loss: shares.count for loss, shares in attacked.gradients.items()} == {"cross_entropy": 9, "margin": 6}


def test_where_no_loss_helps_the_points_of_the_first_are_kept():
    given, classes = images(0.9, 0.2), labels(0, 1)

    found = Attack(eps=0.1, steps=3)(Brighter(), given, classes)

    assert torch.equal(found, Attack(eps=0.1, steps=3, losses=("cross_entropy",))(Brighter(), given, classes))


def test_an_image_that_an_earlier_loss_felled_is_out_of_the_later_ones_hands():
    """Saturated for cross-entropy is the second image alone, and the margin reaches it."""
    given, classes = images(0.52, 0.55), labels(0, 0)
    sharp = Brighter(200.0)

    attacked = Attack(eps=0.1, steps=2).run(sharp, given, classes)
    first = Attack(eps=0.1, steps=2, losses=("cross_entropy",)).run(sharp, given, classes)

    assert sharp(attacked.images).argmax(1).tolist() == [1, 1]
    assert torch.equal(attacked.images[0], first.images[0])


@pytest.mark.parametrize(("losses", "vanished"), [(("cross_entropy",), [False, True]), (("margin",), [False, False])])
def test_an_image_whose_gradients_one_loss_cannot_follow_has_vanished_unless_another_can(losses, vanished):
    """The model is sure of the bright image alone: its probability rounds to 1."""
    given, classes, sharp = images(0.55, 0.95), labels(0, 0), Brighter(100.0)

    alone = Attack(eps=0.01, steps=2, losses=losses).run(sharp, given, classes)
    both = Attack(eps=0.01, steps=2).run(sharp, given, classes)

    assert alone.vanished.tolist() == vanished
    assert both.vanished.tolist() == [False, False]


def test_an_image_that_no_loss_gives_a_gradient_has_vanished():
    attacked = Attack(eps=0.1, steps=2).run(Brighter(0.0), images(0.6, 0.9), labels(0, 0))

    assert attacked.vanished.tolist() == [True, True]
    assert {loss: shares.zero for loss, shares in attacked.gradients.items()} == {"cross_entropy": 4, "margin": 4}


@pytest.mark.parametrize(("name", "loss"), [("cross_entropy", cross_entropy), ("margin", margin)])
def test_a_loss_is_the_one_of_its_name(name, loss):
    class Steep(nn.Module):
        """A brighter pixel helps the nearest other class, and a darker one the third, more steeply."""

        def forward(self, x):
            level = x.mean((1, 2, 3))
            return torch.stack([torch.ones_like(level), level, 2.9 - 5 * level], 1)

    given, classes = images(0.5), labels(0)
    generator = torch.Generator().manual_seed(0)
    expected = pgd(Steep(), given, classes, eps=0.01, step=0.002, steps=5, loss=loss, generator=generator)

    found = Attack(eps=0.01, steps=5, step=0.002, losses=(name,))(Steep(), given, classes)

    assert torch.equal(found, expected)
    assert (found.mean() > 0.5) == (name == "margin")


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 49), (1, 50), (2, 100), (2, 149)])
def test_two_in_a_hundred_may_stand_without_a_gradient(count, total):
    assert gradients_vanished("attacked", count, total) == ""


@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 49), (2, 99), (3, 100)])
def test_more_are_told_with_their_number_and_the_figure_s_name(count, total):
    sentence = gradients_vanished("attacked", count, total)

    assert sentence.startswith(f"attacked: {count} of {total} images stand because the attack's gradients vanished")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_under_one_is_refused_before_the_first_batch_is_asked_for(size):
    with pytest.raises(ValueError, match=f"needs a batch size from 1 up, got {size}"):
        attacked_batches(Brighter(), dataset(0.6), Attack(steps=1), batch_size=size)


def test_batches_of_one_image_are_batches():
    found = list(attacked_batches(Brighter(), dataset(0.6, 0.7), Attack(steps=1), batch_size=1))

    assert [batch.ids.tolist() for batch in found] == [[0], [1]]


def test_batches_are_of_256_images_if_nothing_else_is_said():
    found = attacked_batches(Brighter(), dataset(*[0.6] * 257), Attack(steps=1))

    assert [len(batch.ids) for batch in found] == [256, 1]


def test_every_batch_has_its_images_as_floats_its_labels_and_a_start_of_its_own():
    data, attack = dataset(0.6, 0.6, 0.6), Attack(eps=0.01, steps=2, step=0.001, seed=1)

    first, second = attacked_batches(Brighter(), data, attack, batch_size=2)

    assert torch.equal(torch.cat([first.images, second.images]), data.floats(0, 3))
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, 0], [0])
    assert second.ids.tolist() == [2]
    assert torch.equal(first.attacked, attack(Brighter(), first.images, first.labels, batch=0))
    assert torch.equal(second.attacked, attack(Brighter(), second.images, second.labels, batch=1))
    assert first.vanished.tolist() == [False, False]
    assert first.gradients["cross_entropy"].count == 4


def test_an_accuracy_is_counted_over_all_batches():
    batches = [(images(0.6, 0.7, 0.2), labels(0, 1, 1)), (images(0.1), labels(0))]

    assert accuracy(Brighter(), batches) == Accuracy(2, 4)


def test_an_accuracy_of_no_image_is_refused():
    with pytest.raises(ValueError, match="got 0 of 0"):
        accuracy(Brighter(), [])


def test_a_module_in_training_is_counted_in_eval_mode_and_left_in_training():
    model = Fickle().train()

    found = accuracy(model, [(images(0.6, 0.3), labels(0, 1))])

    assert found == Accuracy(2, 2)
    assert model.training


def test_an_attack_judges_what_fell_in_eval_mode_and_leaves_the_model_as_it_was():
    model = Fickle().train()

    attacked = Attack(eps=0.2, steps=2).run(model, images(0.6, 0.4), labels(0, 1))

    assert list(attacked.gradients) == ["cross_entropy"]  # both fell
    assert model.training
