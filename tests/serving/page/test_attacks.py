import asyncio
import math
import os
import sys
import threading

import pytest
import torch
from torch import nn

from fastdef.attacks import QueryResult, pgd
from fastdef.defense import ActiveDefense
from fastdef.serving.bodies import Refusal
from fastdef.serving.page import attacks
from fastdef.serving.page.attacks import Attacker

CLASSES = 5
GIVE_WAY = attacks._give_way  # which is nothing within a test, or it would wait for the others


class Waves(nn.Module):
    """What makes each step of an attack lead elsewhere."""

    def forward(self, x):
        return (20 * x).sin()


def defended(activation):
    torch.manual_seed(0)
    first, last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 6 * 6, CLASSES)
    model = nn.Sequential(first, activation, nn.Flatten(), last).eval()
    return ActiveDefense(model, layer="1", beta=1.0, delta=0.01, max_steps=20, compile=False, slots=2)


@pytest.fixture(scope="module")
def defense():
    return defended(nn.ReLU())


@pytest.fixture(scope="module")
def image():
    return torch.randint(20, 230, (1, 6, 6), generator=torch.Generator().manual_seed(0)) / 255


@pytest.fixture
def attacker(defense):
    return Attacker(defense, seconds=600.0)


def attack(attacker, *given):
    return asyncio.run(attacker.attack(*given))


def probability(defense, image, label):
    with torch.no_grad():
        return float(defense.model(image[None])[0].softmax(0)[label])


@pytest.mark.parametrize("kind", ["static", "adaptive"])
def test_an_attack_goes_as_far_as_it_may_in_steps_of_a_file_and_does_harm(attacker, defense, image, kind):
    made = attack(attacker, kind, image, 3)

    change = (made.image - image) * 255
    torch.testing.assert_close(change, change.round(), atol=1e-4, rtol=0)
    assert float(change.abs().max()) == pytest.approx(8, abs=1e-3)
    assert probability(defense, made.image, 3) < probability(defense, image, 3)
    torch.testing.assert_close(made.change, change / 16 + 0.5)
    assert made.seconds > 0
    assert made.gradients > 0


def test_the_static_attack_is_descent_through_the_model_alone(image):
    defense = defended(Waves())

    torch.manual_seed(1)
    made = attack(Attacker(defense), "static", image, 3)
    torch.manual_seed(1)
    expected = pgd(defense.model, image[None], torch.tensor([3]), eps=8 / 255, step=2 / 255, steps=20)

    assert torch.equal(made.image, (expected[0] * 255).round() / 255)
    assert made.gradients == 20


@pytest.mark.parametrize("kind", ["static", "adaptive"])
def test_without_a_label_the_undefended_answer_is_left(attacker, defense, image, kind):
    with torch.no_grad():
        answer = int(defense.model(image[None]).argmax())

    made = attack(attacker, kind, image, None)

    assert probability(defense, made.image, answer) < probability(defense, image, answer)


@pytest.mark.parametrize("label", range(CLASSES))
def test_every_class_can_be_left(attacker, defense, image, label):
    made = attack(attacker, "static", image, label)

    assert probability(defense, made.image, label) < probability(defense, image, label)


@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
def test_a_label_that_is_no_class_is_refused_and_the_next_attack_runs(attacker, image, label):
    with pytest.raises(ValueError, match=f"needs a label from 0 to 4, got {label}"):
        attack(attacker, "static", image, label)

    assert attack(attacker, "static", image, 0).gradients == 20


def test_another_kind_is_refused_and_the_next_attack_runs(attacker, image):
    with pytest.raises(ValueError, match="needs an attack among static, adaptive, got 'other'"):
        attack(attacker, "other", image, None)

    assert attack(attacker, "static", image, 0).gradients == 20


def test_while_an_attack_runs_another_is_503_with_the_seconds_to_come_again(defense, image, monkeypatch):
    attacker, began, end = Attacker(defense), threading.Event(), threading.Event()
    monkeypatch.setattr(attacks, "pgd", lambda *given, **settings: began.set() or (end.wait(10) and given[1]))
    first = threading.Thread(target=attack, args=(attacker, "static", image, None))
    first.start()
    assert began.wait(60)

    with pytest.raises(Refusal, match="one attack at a time") as refused:
        attack(attacker, "static", image, None)
    end.set()
    first.join()

    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "5"})


def test_an_attacker_has_a_copy_of_his_own_without_the_noise_to_come(attacker, defense):
    own = attacker._defense

    assert all(mine is not theirs for mine, theirs in zip(own.parameters(), defense.parameters(), strict=True))
    assert own.config() == defense.config()
    mine, theirs = (one.noised(torch.zeros(1, 1, 6, 6), ids=torch.tensor([0])) for one in (own, defense))
    assert not torch.equal(mine, theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="where a thread can say so")
def test_an_attack_lets_every_other_thread_go_first(defense, monkeypatch):
    monkeypatch.setattr(attacks, "_give_way", GIVE_WAY)
    attacker = Attacker(defense)

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert attacker._thread.submit(priority).result(60) == 19


class Clock:
    """A clock that is set."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_an_attack_tells_the_seconds_that_it_took(attacker, image, monkeypatch, clock):
    def late(model, images, labels, **settings):
        clock.now += 3.0
        return images

    monkeypatch.setattr(attacks, "pgd", late)

    assert attack(attacker, "static", image, None).seconds == 3.0


@pytest.fixture
def asks(monkeypatch, clock):
    """The search asks so many times; where it is cut, once more after its time."""

    def ask(count, *, cut):
        def few(asks, images, **settings):
            for number in range(count + cut):
                clock.now += 601.0 * (number == count)
                asks[0](images, torch.tensor([0]))

        monkeypatch.setattr(attacks, "search", few)

    return ask


@pytest.mark.parametrize(("count", "cut"), [(20, True), (21, True), (20, False), (3, False)])
def test_an_attack_says_whether_the_clock_ended_it(attacker, image, asks, count, cut):
    asks(count, cut=cut)

    made = attack(attacker, "adaptive", image, 3)

    assert (made.gradients, made.cut) == (count, cut)


@pytest.mark.parametrize("count", [0, 19])
def test_an_attack_of_few_gradients_is_not_shown_and_the_next_one_runs(attacker, image, asks, count):
    """Or a busy machine would make the defense look good."""
    asks(count, cut=True)

    with pytest.raises(Refusal, match=f"too busy for an attack: {count} of at least 20 gradients in 600 s") as refused:
        attack(attacker, "adaptive", image, 3)

    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "600"})
    assert not attack(attacker, "static", image, 3).cut


def asked(*answers):
    """What keeps the best of points 0, 1, ..., for which such answers come: right or not, and the loss."""
    script = iter(answers)

    def ask(x, rows):
        right, loss = next(script)
        return QueryResult(torch.tensor([loss]), torch.zeros_like(x), torch.tensor([right]))

    timed = attacks._Timed(ask, torch.tensor([-1.0]), 1000.0)
    for number in range(len(answers)):
        timed(torch.tensor([float(number)]), torch.tensor([0]))
    return timed


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        ([], -1),
        ([(1.0, -5.0)], 0),
        ([(1.0, -math.inf)], 0),
        ([(1.0, 1.0), (1.0, 3.0), (1.0, 2.0)], 1),
        ([(1.0, 9.0), (0.5, 1.0), (0.75, 9.0)], 1),
        ([(0.0, 1.0), (1.0, 9.0)], 0),
        ([(0.0, 1.0), (0.0, 1.0)], 0),
    ],
)
def test_the_best_point_is_answered_right_by_the_fewest_draws_and_then_has_the_highest_loss(answers, best):
    timed = asked(*answers)

    assert timed.best.tolist() == [best]
    assert timed.count == len(answers)


def test_a_search_ends_when_its_time_is_up(clock):
    timed = attacks._Timed(lambda x, rows: QueryResult(x, x, x), torch.zeros(1), 2.0)

    timed(torch.ones(1), torch.zeros(1))
    clock.now += 1.9
    timed(torch.ones(1), torch.zeros(1))
    clock.now += 0.2
    with pytest.raises(TimeoutError):
        timed(torch.ones(1), torch.zeros(1))

    assert timed.count == 2
