import sys

import pytest
import torch

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import Target, evaluate_adaptive
from fastdef.evaluation.adaptive.autoattack import rand, square, standard
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows.rand import Differentiable
from fastdef.evaluation.adaptive.target import FixedBatch

EPS = 8 / 255
EFFORT = AutoAttackEffort(iterations=3, targets=2, queries=5, eot=2)


@pytest.fixture
def batch(model, dataset):
    images = dataset.floats(0, 6)
    with torch.no_grad():
        return images, model(images).argmax(1)


def test_it_stays_in_the_ball_and_leaves_the_global_generator_alone(model, batch):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    first = standard(model, *batch, eps=EPS, effort=EFFORT, seed=1)
    again = standard(model, *batch, eps=EPS, effort=EFFORT, seed=1)

    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert (first - batch[0]).abs().max() <= EPS + 1e-6


def test_a_debugger_goes_on_tracing(model, batch):
    def debugger(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        standard(model, *batch, eps=EPS, effort=EFFORT, seed=1)
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)


def test_square_hands_back_its_best_points(model, batch):
    found = square(model, *batch, eps=EPS, queries=5, seed=0)

    assert (found - batch[0]).abs().max() <= EPS + 1e-6
    assert not torch.equal(found, batch[0])


def test_of_the_version_for_random_defenses_every_candidate_is_kept(defense, batch):
    target = Target.defended(defense)
    through = Differentiable(target, NoiseSeeds(torch.arange(6), SeedStream.ATTACK), 6)

    with frozen_eval(defense.model):
        right, tried = rand(through, *batch, eps=EPS, effort=EFFORT, seed=0)

    assert right.shape == (6,)
    assert right.dtype == torch.bool
    assert 2 <= len(tried) <= 3  # what it hands back, and what each loss made of what still stood
    assert all((candidate - batch[0]).abs().max() <= EPS + 1e-6 for candidate in tried)


def test_three_classes_run_without_the_losses_that_need_four(dataset):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()

    attacked = standard(model, dataset.floats(0, 4), torch.tensor([0, 1, 2, 0]), eps=EPS, effort=EFFORT, seed=0)

    assert bool(attacked.isfinite().all())


@pytest.mark.slow
def test_a_compiled_model_in_fixed_batches_is_not_compiled_again_nor_called_dynamic(model, batch):
    from pyautoattack import checks
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    for name in checks.funcs:
        checks.funcs[name] = 0  # it counts for the whole process
    with frozen_eval(model):
        fixed = FixedBatch(model, 4, compile=True)
        fixed.warm(batch[0])
        graphs = counters["stats"]["unique_graphs"]

        checks.check_dynamic(fixed, batch[0])  # warns, and a warning is an error here
        standard(fixed, *batch, eps=EPS, effort=EFFORT, seed=0)

    assert counters["stats"]["unique_graphs"] == graphs


def test_without_its_library_one_line_says_what_to_install(monkeypatch, model, dataset, tiny):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)

    with pytest.raises(ValueError, match=r"needs pyautoattack: pip install 'fastdef\[eval\]'"):
        evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[1])
