"""A defense that is copied, sent to another process, shared by threads, or wrapped as users wrap models."""

import copy
import multiprocessing
import os
import pickle
import threading

import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet


@pytest.fixture
def used(defense_for, images):
    """A defense that has run."""
    torch.manual_seed(0)
    defense = defense_for(WideResNet(10, 1, in_channels=1).eval(), images)
    defense.defend(images[:2])
    return defense


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda defense: pickle.loads(pickle.dumps(defense))])
def test_a_copy_answers_the_same_with_weights_of_its_own(used, images, copied):
    other = copied(used)

    assert torch.equal(other.defend(images).logits, used.defend(images).logits)
    with torch.no_grad():
        other.model.conv1.weight.mul_(1.5)
    assert not torch.equal(other.smooth(images[:2]).images, used.smooth(images[:2]).images)


def test_a_copy_of_a_defense_without_a_seed_has_noise_of_its_own(defense_for, images):
    defense = defense_for(WideResNet(10, 1, in_channels=1).eval(), images, seed=None)

    other = copy.deepcopy(defense)

    assert other.seed != defense.seed
    assert not torch.equal(other.noised(images), defense.noised(images))


def test_a_spawned_process_answers_the_same(used, images):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        logits = pool.apply(used, (images[:3],))

    torch.testing.assert_close(logits, used(images[:3]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_in_one_line(used, images):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def ask():
        try:
            used(images[:1])
        except ValueError as error:
            writer.send(str(error))

    process = context.Process(target=ask)
    process.start()

    assert reader.poll(30)
    assert "got a fork: spawn instead" in reader.recv()
    process.join(30)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_defenses_first_used_in_two_threads_answer_as_in_one(defense_for, images, compile):
    torch.manual_seed(0)
    defenses = [defense_for(WideResNet(10, 1, in_channels=1).eval(), images, compile=compile) for _ in range(4)]
    logits = {}

    def ask(number):
        logits[number] = defenses[number](images)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number, defense in enumerate(defenses):
        torch.testing.assert_close(logits[number], defense(images), rtol=1e-3, atol=1e-3)


def test_compiled_by_its_user_it_answers_bitwise_the_same_and_compiles_nothing(used, images):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    wrapped = torch.compile(used)
    logits = wrapped(images)

    assert torch.equal(logits, used(images))
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Twice(torch.nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls, self.block = calls, torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        for _ in range(self.calls):
            x = self.block(x)
        return x.mean((2, 3))


def test_a_layer_that_is_called_twice_or_never_is_refused_in_one_line(images):
    with pytest.raises(ValueError, match="'block', called 2 times"):
        ActiveDefense(Twice(2).eval(), "block", compile=False)(images)
    with pytest.raises(ValueError, match="never reached 'block'"):
        ActiveDefense(Twice(0).eval(), "block", compile=False)(images)


def test_weights_that_a_fused_optimizer_moved_are_noticed(used, images):
    before = used.smooth(images[:2])
    used.model.requires_grad_(True)
    optimizer = torch.optim.SGD(used.model.parameters(), 0.5, fused=True)
    used.model(images).sum().backward()
    optimizer.step()

    after = used.smooth(images[:2])

    fresh = ActiveDefense(used.model, beta=3.0, compile=False, slots=8, seed=3, delta=used.delta)
    assert not torch.equal(before.images, after.images)
    assert torch.equal(after.images, fresh.smooth(images[:2]).images)
