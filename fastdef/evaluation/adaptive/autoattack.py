"""AutoAttack, by its library: as it is published, or with less effort where a budget says so."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.target import FixedBatch

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


def standard(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    effort: AutoAttackEffort,
    seed: int,
    parts: Sequence[str] = PARTS,
) -> Tensor:
    """AutoAttack standard: APGD-CE, APGD-T, FAB-T and Square in turn, on what still stands; or some of them.

    Returns:
        (N, C, H, W): a wrongly answered point where one was found, else the image.
    """
    if isinstance(model, FixedBatch):
        model.warm(images)
    with _seeded(seed, images):
        classes = _classes(model, images)
        attack = _make(model, eps, effort, seed, images, classes=classes)
        # the targeted parts' DLR loss needs four classes
        attack.attacks_to_run = [part for part in parts if part != "apgd-t" or classes >= 4]
        attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return attacked


def rand(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, effort: AutoAttackEffort, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """AutoAttack's version for randomised defenses: APGD-CE and APGD-DLR with expectation over transformation.

    Returns:
        (N,) bool, which images it counts as answered right, by a single answer each; and (N, C, H, W) each, what it
        hands back and what each of its parts made, the points included that one lucky answer made it throw away.
    """
    tried: list[Tensor] = []
    with _seeded(seed, images):
        attack = _make(model, eps, effort, seed, images, version="rand")
        attack.apgd.eot_iter = effort.eot
        perturb = attack.apgd.perturb

        def recorded(x: Tensor, y: Tensor) -> Tensor:
            made: Tensor = perturb(x, y)
            whole = images.clone()
            for image, point in zip(x, made, strict=True):
                same = (images == image).flatten(1).all(1)
                whole[same] = point
            tried.append(whole)
            return made

        attack.apgd.perturb = recorded
        attacked, answers = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return answers == labels, [attacked, *tried]


def square(
    predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, eps: float, queries: int, seed: int
) -> Tensor:
    """The Square attack alone (Andriushchenko et al., 2020), by scores and without gradients.

    Returns:
        (N, C, H, W) its best points, those of images that it did not turn included.
    """
    from pyautoattack.square import SquareAttack

    with _seeded(seed, images):
        attack = SquareAttack(
            predict, norm="Linf", n_queries=queries, eps=eps, seed=seed, device=images.device, resc_schedule=False
        )
        attack.init_hyperparam(images)
        _, adversarial = attack.attack_single_run(images, labels)
    return torch.as_tensor(adversarial)


def _make(
    model: nn.Module,
    eps: float,
    effort: AutoAttackEffort,
    seed: int,
    images: Tensor,
    *,
    classes: int = 10,
    version: str = "standard",
) -> Any:
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, eps=eps, seed=seed, device=images.device, version=version)
    targets = min(effort.targets, classes - 1)
    for part in (attack.apgd, attack.apgd_targeted, attack.fab):
        part.n_iter = effort.iterations
    _checkpoints(attack.apgd)
    _checkpoints(attack.apgd_targeted)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    attack.square.n_queries = effort.queries
    return attack


def _checkpoints(apgd: Any) -> None:
    """Its schedule, which it works out from the iterations when it is made."""
    apgd.n_iter_orig = apgd.n_iter
    apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = (max(int(s * apgd.n_iter), 1) for s in (0.22, 0.06, 0.03))


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor) -> int:
    return int(model(images[:1]).shape[1])


@contextmanager
def _seeded(seed: int, images: Tensor) -> Iterator[None]:
    """It seeds torch's global generators, logs what it thinks of the model and ends all tracing: it stays in here."""
    logger = logging.getLogger("auto-attack")
    level, debugger = logger.level, sys.gettrace()
    logger.setLevel(logging.ERROR)
    devices = [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        sys.settrace(debugger)
        logger.setLevel(level)
