import itertools
import threading

import pytest
import torch
from torch import nn

from fastdef.attacks import projected_ascent
from fastdef.defense import ActiveDefense, Polyak, lockstep, whole_network
from fastdef.nn import WideResNet, prefix
from fastdef.ops import smoothing_loss


def test_defense_equals_the_loop_as_written(defense_for, model, images):
    defense = defense_for(model, images)
    noise = torch.empty_like(images).uniform_(-0.075, 0.075, generator=torch.Generator().manual_seed(1))

    smoothed = defense.smooth(images, noise=noise)

    with whole_network(model, "block1") as losses:
        expected, steps, loss = lockstep(losses, images, noise, beta=defense.beta, delta=defense.delta, max_steps=1000)
    model.zero_grad()
    assert steps.min() != steps.max()  # or stopping per image would not be tested
    torch.testing.assert_close(smoothed.steps, steps)
    torch.testing.assert_close(smoothed.images, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(smoothed.loss, loss)
    assert smoothed.converged.all()


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_the_number_of_slots_does_not_change_an_answer(defense_for, model, images, slots):
    answers = defense_for(model, images, slots=slots).defend(images)

    expected = defense_for(model, images).defend(images)
    torch.testing.assert_close(answers.steps, expected.steps)
    torch.testing.assert_close(answers.images, expected.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_other_neighbours_leave_an_image_bitwise_as_it_was(defense_for, model, images):
    defense = defense_for(model, images, deterministic=True)
    other = torch.cat([images[:1], 1 - images[1:]])

    mine, among_others = defense.smooth(images[:8]), defense.smooth(other[:8])

    assert torch.equal(mine.images[0], among_others.images[0])
    assert mine.loss[0] == among_others.loss[0]
    assert not torch.equal(mine.images[1], among_others.images[1])


def test_an_id_carries_its_noise_to_any_position(defense_for, model, images):
    defense = defense_for(model, images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))

    straight, shuffled = defense.defend(images), defense.defend(images[order], ids=order)

    torch.testing.assert_close(shuffled.images, straight.images[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled.steps, straight.steps[order])


def test_seeds_differ_and_a_missing_seed_is_drawn(defense_for, model, images):
    first, second = (ActiveDefense(model, seed=None, compile=False).seed for _ in range(2))
    one, two = (defense_for(model, images, seed=seed).smooth(images[:2]) for seed in (1, 2))

    assert first != second
    assert not torch.equal(one.images, two.images)


def test_max_steps_is_reported_and_not_passed(defense_for, model, images):
    defense = defense_for(model, images, max_steps=3)

    smoothed = defense.smooth(images)

    assert int(smoothed.steps.max()) == 3
    capped = smoothed.steps == 3
    torch.testing.assert_close(smoothed.converged, smoothed.loss <= defense.delta)
    assert not smoothed.converged[capped].all()


def test_the_reported_loss_is_that_of_the_returned_image(defense_for, model, images):
    defense = defense_for(model, images)

    smoothed = defense.smooth(images)

    torch.testing.assert_close(smoothed.loss, smoothing_loss(prefix(model, "block1")(smoothed.images)))


def test_outer_loops_average_probabilities(defense_for, model, images):
    defense = defense_for(model, images, outer_loops=3)

    answers = defense.defend(images[:4])

    with torch.no_grad():
        runs = [defense.smooth(images[:4], noise=defense.noise(torch.arange(4), loop, images[:4])) for loop in range(3)]
        mean = torch.stack([model(run.images).softmax(1) for run in runs]).mean(0)
    torch.testing.assert_close(answers.logits.exp(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answers.steps, sum(run.steps for run in runs))


def test_calling_the_defense_classifies_the_smoothed_image(defense_for, model, images):
    defense = defense_for(model, images)

    logits = defense(images[:5])

    with torch.no_grad():
        expected = model(defense.smooth(images[:5]).images).log_softmax(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_calibrate_sets_delta_to_a_part_of_the_clean_loss(model, images):
    defense = ActiveDefense(model, compile=False)

    delta = defense.calibrate(images, ratio=0.5)

    clean = smoothing_loss(prefix(model, "block1")(images)).mean().detach()
    assert delta == defense.delta == pytest.approx(0.5 * float(clean), rel=1e-6)


def test_a_stream_gives_the_batch_s_answers_in_order(defense_for, model, images):
    defense = defense_for(model, images)

    streamed = list(defense.stream(iter(images)))

    expected = defense.defend(images)
    assert [answer.steps for answer in streamed] == expected.steps.tolist()
    torch.testing.assert_close(torch.stack([a.logits for a in streamed]), expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("good", [1, 3, 7])
def test_a_stream_gives_what_came_before_an_error_and_then_raises_it(defense_for, model, images, good):
    defense = defense_for(model, images, slots=2)
    source = itertools.chain(images[:good], [torch.full_like(images[0], 2.0)], images)

    stream = defense.stream(source)
    streamed = [next(stream).steps for _ in range(good)]
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 2 to 2"):
        next(stream)

    assert streamed == defense.defend(images[:good]).steps.tolist()


@pytest.mark.parametrize("on_invalid", ["raise", "flag"])
def test_one_rounding_above_one_is_clipped_and_more_is_refused(defense_for, model, images, on_invalid):
    defense = defense_for(model, images)
    above = torch.ones_like(images[:2])
    one = defense.defend(above)
    above[0, 0, 0, 0] = 1 + 2**-23

    clipped = defense.defend(above, on_invalid=on_invalid)

    assert not clipped.invalid.any()
    assert torch.equal(clipped.logits, one.logits)
    above[0, 0, 0, 0] = 1 + 2**-22
    with pytest.raises(ValueError, match=r"got values from 1 to 1\.00000024"):
        defense.defend(above)
    assert defense.defend(above, on_invalid="flag").invalid.tolist() == [True, False]


def test_a_stream_pulls_no_more_than_its_window(defense_for, model, images):
    defense = defense_for(model, images, slots=2)
    pulled = 0

    def source():
        nonlocal pulled
        for index in range(1000):
            pulled += 1
            yield images[index % len(images)]

    stream = defense.stream(source())
    for _ in range(5):
        next(stream)

    assert pulled <= 5 + 8 * 2 + 2


def test_a_deadline_flags_what_it_cut_short(defense_for, model, images):
    defense = defense_for(model, images, slots=4)
    defense.delta, defense.max_steps = 1e-9, 10**6

    answers = defense.defend(images[:4], deadline=2.0)

    assert answers.expired.all()
    assert not answers.converged.any()
    assert torch.isfinite(answers.logits).all()


def test_a_budget_holds_for_its_image_alone(defense_for, model, images):
    defense = defense_for(model, images)
    free = defense.defend(images)
    budgets = torch.full((len(images),), 1000)
    budgets[::2] = 2

    held = defense.defend(images, budgets=budgets)

    assert int(held.steps[::2].max()) == 2
    assert not held.converged[::2].any()
    assert torch.equal(held.steps[1::2], free.steps[1::2])


def test_images_made_to_be_slow_starve_nobody(defense_for, model, images):
    """Every third image is made to have the largest loss; the others take the steps they took without it."""
    defense = defense_for(model, images, slots=4)
    free = defense.defend(images)
    network, every_third = prefix(model, "block1"), torch.arange(len(images)) % 3 == 0
    worst = projected_ascent(lambda x: smoothing_loss(network(x)), images, eps=1.0, step=0.1, steps=20, start=images)
    mixed = torch.where(every_third.view(-1, 1, 1, 1), worst, images)

    answers = defense.defend(mixed)

    assert answers.steps[every_third].sum() > 2 * free.steps[every_third].sum()
    assert torch.equal(answers.steps[~every_third], free.steps[~every_third])
    torch.testing.assert_close(answers.logits[~every_third], free.logits[~every_third], rtol=1e-4, atol=1e-4)


def test_two_threads_may_share_a_defense(defense_for, model, images):
    defense = defense_for(model, images)
    expected = [defense.smooth(images[:12]), defense.smooth(images[12:])]
    got = [[], []]

    def work(half):
        part = images[:12] if half == 0 else images[12:]
        got[half] = [defense.smooth(part) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(half,)) for half in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for half in range(2):
        assert len(got[half]) == 3
        assert all(torch.equal(result.images, expected[half].images) for result in got[half])


def test_changed_weights_are_noticed(defense_for, images):
    torch.manual_seed(0)
    model = WideResNet(10, 1, in_channels=1).eval()
    defense = defense_for(model, images)
    before = defense.smooth(images[:2])

    with torch.no_grad():
        model.conv1.weight.mul_(1.5)
    after = defense.smooth(images[:2])

    fresh = defense_for(model, images)
    fresh.delta = defense.delta
    assert not torch.equal(before.images, after.images)
    assert torch.equal(after.images, fresh.smooth(images[:2]).images)


def test_the_defense_leaves_the_model_bitwise_as_it_was(defense_for, images):
    torch.manual_seed(0)
    model = WideResNet(10, 1, in_channels=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    defense_for(model, images).defend(images[:3])

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiled_answers_equal_uncompiled_ones(defense_for, model, images):
    compiled = defense_for(model, images, compile=True, deterministic=True).smooth(images)

    expected = defense_for(model, images).smooth(images)
    torch.testing.assert_close(compiled.steps, expected.steps)
    torch.testing.assert_close(compiled.images, expected.images, rtol=0, atol=1e-5)


def test_polyak_steps_reach_the_threshold_in_fewer_steps(defense_for, model, images):
    plain = defense_for(model, images).smooth(images)
    defense = defense_for(model, images, solver=Polyak())

    smoothed = defense.smooth(images)

    assert smoothed.converged.all()
    assert smoothed.steps.sum() < plain.steps.sum()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 12, 12), r"shape \(N, C, H, W\), got \(1, 12, 12\)"),
        (torch.zeros(0, 1, 12, 12), "at least one image"),
        (torch.zeros(1, 1, 12, 12, dtype=torch.uint8), "floating-point"),
        (torch.full((1, 1, 12, 12), 255.0), r"in \[0, 1\], got values from 255"),
        (torch.full((1, 1, 12, 12), float("nan")), "NaN or Inf"),
        (torch.full((1, 1, 12, 12), float("inf")), "NaN or Inf"),
    ],
)
def test_bad_images_are_refused(model, bad, message):
    with pytest.raises(ValueError, match=message):
        ActiveDefense(model, compile=False)(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "block9"}, "block9"),
        ({"layer": ["block1"]}, "a layer of WideResNet, got \\['block1'\\]"),
        ({"sigma": -1.0}, "sigma > 0"),
        ({"delta": 0.0}, "delta > 0"),
        ({"delta": 3.402823466385289e38}, "delta > 0 and within float32, got 3.4"),
        ({"beta": float("nan")}, "beta > 0"),
        ({"max_steps": 0}, "max_steps > 0"),
        ({"sigma": True}, "sigma > 0 and within float32, got True"),
        ({"slots": 0}, "slots > 0"),
        ({"outer_loops": True}, "outer_loops > 0 and whole, got True"),
        ({"dtype": torch.int8}, "dtype float32, float16, bfloat16 or auto"),
    ],
)
def test_bad_parameters_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        ActiveDefense(model, **options)


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 40.0), ("layer", "block2"), ("solver", Polyak()), ("dtype", torch.bfloat16)]
)
def test_what_the_compiled_steps_hold_cannot_be_set(defense_for, model, images, name, value):
    defense = defense_for(model, images)
    before = defense.config(), getattr(defense, name)

    with pytest.raises(AttributeError, match=f"ActiveDefense.{name} is fixed .* make a new ActiveDefense with {name}="):
        setattr(defense, name, value)

    assert (defense.config(), getattr(defense, name)) == before


@pytest.mark.parametrize(
    ("name", "value"), [("delta", 1e-9), ("sigma", 0.01), ("max_steps", 2), ("outer_loops", 2), ("seed", 5)]
)
def test_what_the_loop_is_given_anew_may_be_set(defense_for, model, images, name, value):
    defense = defense_for(model, images, max_steps=10)
    defense.defend(images[:4])

    setattr(defense, name, value)

    expected = defense_for(model, images, max_steps=10)
    fresh = ActiveDefense(
        model, **{"beta": 3.0, "seed": 3, "delta": expected.delta, "max_steps": 10, name: value}, compile=False, slots=8
    )
    assert torch.equal(defense.defend(images[:4]).logits, fresh.defend(images[:4]).logits)


def test_a_threshold_that_is_a_huge_whole_number_is_a_number(model, images):
    answers = ActiveDefense(model, delta=2**70, compile=False).defend(images)

    assert answers.converged.all()
    assert (answers.steps == 0).all()


@pytest.mark.parametrize(
    "use",
    [
        ActiveDefense.defend,
        ActiveDefense.smooth,
        ActiveDefense.calibrate,
        ActiveDefense.masked_step,
        lambda defense, images: list(defense.stream(images)),
        lambda defense, images: defense.empty_slots(1, images[0]),
    ],
    ids=["defend", "smooth", "calibrate", "masked_step", "stream", "empty_slots"],
)
def test_a_model_left_in_training_mode_is_refused_and_left_as_it_is(images, use):
    model = WideResNet(10, 1, in_channels=1)
    defense = ActiveDefense(model, compile=False)
    defense.smooth(images[:1])  # traced in eval mode
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(ValueError, match="a model in eval mode, got one in training mode"):
        use(defense, images[:1])

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_noise_and_ids_must_fit_the_images(model, images):
    defense = ActiveDefense(model, compile=False)

    with pytest.raises(ValueError, match="noise of the images' shape"):
        defense.smooth(images, noise=torch.zeros(1))
    with pytest.raises(ValueError, match="int64 ids"):
        defense.smooth(images, ids=torch.arange(3))
    with pytest.raises(ValueError, match="int64 budgets"):
        defense.defend(images, budgets=torch.zeros(24, dtype=torch.int64))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


def test_any_module_can_be_defended(images):
    torch.manual_seed(0)
    defense = ActiveDefense(Plain().eval(), "features", compile=False, beta=5.0)
    defense.calibrate(images)

    answers = defense.defend(images)

    assert answers.logits.shape == (24, 3)
    assert answers.converged.all()


def test_many_defenses_compile_in_one_process(defense_for, images):
    """Dynamo refuses to compile one code object more than a few times."""
    for number in range(10):
        torch.manual_seed(number)
        model = WideResNet(10, 1, in_channels=1).eval()
        defense_for(model, images, compile=True, slots=1, max_steps=1).smooth(images[:1])
