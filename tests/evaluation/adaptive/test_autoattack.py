import logging
import sys
from dataclasses import replace

import pytest
import torch

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import Target, evaluate_adaptive
from fastdef.evaluation.adaptive.autoattack import rand, square, standard
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows.rand import Differentiable
from fastdef.evaluation.adaptive.target import FixedBatch
from tests.evaluation.adaptive.linear import LEAST, LINEAR, SIDE

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


@pytest.fixture
def runs(monkeypatch):
    """Every run of the library: the attack as it was set, and how it was called."""
    from pyautoattack import AutoAttack

    noted, run = [], AutoAttack.run_standard_evaluation

    def noting(self, images, labels, **options):
        noted.append((self, options))
        return run(self, images, labels, **options)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", noting)
    return noted


def test_its_parts_have_the_effort_that_is_given_and_see_the_whole_batch(model, batch, runs):
    standard(model, *batch, eps=EPS, effort=EFFORT, seed=5)

    ((attack, options),) = runs
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (attack.version, attack.epsilon, attack.seed) == ("standard", EPS, 5)
    assert [part.n_iter for part in (attack.apgd, attack.apgd_targeted, attack.fab)] == [3, 3, 3]
    assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == 2
    assert attack.square.n_queries == 5
    assert options == {"batch_size": 6}


def test_a_part_alone_can_be_run(model, batch, runs):
    standard(model, *batch, eps=EPS, effort=EFFORT, seed=5, parts=["apgd-t"])

    assert runs[0][0].attacks_to_run == ["apgd-t"]


@pytest.mark.parametrize(
    ("classes", "parts", "targets"),
    [(3, ["apgd-ce", "fab-t", "square"], 2), (4, ["apgd-ce", "apgd-t", "fab-t", "square"], 3)],
)
def test_few_classes_are_targeted_all_and_the_losses_that_need_four_are_left_out(
    dataset, runs, classes, parts, targets
):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, classes)).eval()

    standard(model, dataset.floats(0, 2), torch.zeros(2).long(), eps=EPS, effort=replace(EFFORT, targets=9), seed=0)

    assert runs[0][0].attacks_to_run == parts
    assert runs[0][0].apgd_targeted.n_target_classes == targets


@pytest.mark.parametrize("iterations", [3, 40, 100])
def test_a_schedule_is_the_one_that_the_library_makes_for_so_many_iterations(runs, iterations):
    from pyautoattack.autopgd_base import APGDAttack

    standard(Nothing(), *unattacked(), eps=EPS, effort=replace(EFFORT, iterations=iterations), seed=0)

    made = APGDAttack(Nothing(), n_iter=iterations, eps=EPS, norm="Linf", device="cpu")
    made.init_hyperparam(unattacked()[0])
    for part in (runs[0][0].apgd, runs[0][0].apgd_targeted):
        for name in ("n_iter_orig", "n_iter_2", "n_iter_min", "size_decr"):
            assert getattr(part, name) == getattr(made, name)


def test_the_version_for_random_defenses_has_its_own_parts_draws_and_seed(runs):
    rand(Nothing(), *unattacked(), eps=EPS, effort=EFFORT, seed=6)

    ((attack, options),) = runs
    assert attack.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    assert (attack.version, attack.epsilon, attack.seed) == ("rand", EPS, 6)
    assert (attack.apgd.eot_iter, attack.apgd.n_iter) == (2, 3)
    assert options == {"batch_size": 1}


class Nothing(torch.nn.Module):
    """A model that answers the last of its classes, whatever it is asked."""

    def forward(self, x):
        return torch.arange(5.0).repeat(len(x), 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def unattacked():
    """An image that this model answers wrong already, so that nothing is run."""
    return torch.full((1, 1, 4, 4), 0.5), torch.zeros(1).long()


def test_what_a_part_made_comes_back_in_the_images_places_and_who_was_wrong_from_the_start_stays():
    images = torch.full((3, 1, SIDE, SIDE), 0.5)
    images[0] -= 0.02  # in the order of their pixels
    images[1] += 0.01
    labels = torch.tensor([0, 1, 0])  # the second is answered wrong

    right, tried = rand(LINEAR, images, labels, eps=2 * LEAST, effort=replace(EFFORT, iterations=20), seed=0)

    handed_back, made = tried
    assert right.tolist() == [False, False, False]
    for points in (handed_back, made):
        assert LINEAR(points).argmax(1).tolist() == [1, 0, 1]
        assert torch.equal(points[1], images[1])
        assert float((points - images).abs().max()) <= 2 * LEAST + 1e-6


def test_the_seed_says_what_is_drawn(model, batch):
    made = [square(model, *batch, eps=EPS, queries=3, seed=seed) for seed in (0, 0, 1)]

    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_square_is_the_part_of_autoattack_and_asks_as_often_as_it_may():
    from pyautoattack import AutoAttack

    asked, images, labels = [], torch.full((2, 1, SIDE, SIDE), 0.5), torch.zeros(2).long()

    def predict(x):
        asked.append(len(x))
        return LINEAR(x)

    found = square(predict, images, labels, eps=0.95 * LEAST, queries=60, seed=4)  # where nothing can be turned

    part = AutoAttack(LINEAR, eps=0.95 * LEAST, seed=4, device=images.device).square
    part.n_queries = 60
    part.init_hyperparam(images)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        _, expected = part.attack_single_run(images, labels)
    assert torch.equal(found, expected)
    assert asked == [2] * 61  # a start, and the queries


def test_a_model_in_fixed_batches_is_warmed_before_it_is_watched():
    warmed = []

    class Watched(FixedBatch):
        def warm(self, like):
            warmed.append(like)
            super().warm(like)

    images, labels = torch.full((2, 1, SIDE, SIDE), 0.5), torch.zeros(2).long()

    standard(Watched(LINEAR, 3), images, labels, eps=EPS, effort=EFFORT, seed=0, parts=["apgd-ce"])

    assert len(warmed) == 1
    assert torch.equal(warmed[0], images)


def test_what_the_library_thinks_of_a_model_is_not_said_and_its_logger_is_as_it_was():
    logger, said = logging.getLogger("auto-attack"), []
    handler = logging.Handler()
    handler.emit = said.append
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        standard(Nothing(), *unattacked(), eps=EPS, effort=EFFORT, seed=0)  # "setting parameters", it says

        assert said == []
        assert logger.level == logging.INFO
        with pytest.raises(ValueError, match="broken"):
            square(broken, *unattacked(), eps=EPS, queries=1, seed=0)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def broken(x):
    raise ValueError("broken")
