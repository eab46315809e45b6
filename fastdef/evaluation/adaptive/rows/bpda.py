"""Row 3: Auto-PGD on what is deployed, BPDA and expectation over the noise, by three losses and lengths of the loop."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastdef.attacks import Goal, Query, cross_entropy, likeliest, margin, sign_hunter, targeted, untargeted
from fastdef.evaluation.adaptive.alignment import ALIGNED
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda, iterates
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label

TARGETED = "targeted DLR"
ESTIMATED = "estimated gradient signs"
NAMES = {"cross-entropy": "APGD-CE", "margin": "C&W margin, APGD", TARGETED: "APGD-DLR, targeted"}


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Every loss at every depth; the gradient averaged along the way; estimates, where the gradient is another's."""
    budget, defense = plan.budget, plan.target.defense
    if plan.target.classifier is None:
        yield NotRun(3, "BPDA", "no gradients")
        return
    depths: tuple[int | None, ...] = (None,) if defense is None else budget.depths
    base = AttackCase(3, "", lambda batch: [], by_label(plan.target), plan.eps, plan.images, plan.noise_samples)
    for depth in depths:
        deepest = depth is not None and depth == max(budget.depths) > min(budget.depths)
        images = plan.expensive_images if deepest else plan.images
        for kind, name in NAMES.items():
            if kind == TARGETED and plan.classes < 4:
                yield NotRun(3, name, f"its loss needs four classes, and there are {plan.classes}")
                continue
            label = name if depth is None else f"{name} through {depth} steps"
            settings = {**plan.typical, "steps": depth, "loss": kind}
            yield replace(base, name=label, craft=_through(plan, kind, depth), images=images, settings=settings)
    if defense is not None:
        steps = budget.averaged_steps
        settings = {**plan.typical, "gradient": "BPDA, mean over the iterates", "steps": steps}
        name = f"APGD-CE, mean gradient of {steps} steps"
        yield replace(base, name=name, craft=_along(plan, steps), images=plan.expensive_images, settings=settings)

    if plan.alignment is not None and plan.alignment < ALIGNED:
        settings = {"gradient": "signs estimated by flips of blocks", "queries": budget.estimates}
        yield replace(base, name=ESTIMATED, craft=_estimated(plan), images=plan.expensive_images, settings=settings)


def _through(plan: Plan, kind: str, depth: int | None) -> Callable[[Batch], list[Tensor]]:
    def craft(batch: Batch) -> list[Tensor]:
        draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)

        def ask(goal: Goal) -> Query:
            return bpda(plan.target, goal, draws, eot=plan.budget.eot, steps=depth)

        return [plan.search([ask(goal) for goal in _goals(plan, kind, batch)], batch)]

    return craft


def _along(plan: Plan, steps: int) -> Callable[[Batch], list[Tensor]]:
    def craft(batch: Batch) -> list[Tensor]:
        draws, goal = NoiseSeeds(batch.ids, SeedStream.ATTACK), untargeted(batch.labels)
        return [plan.search([iterates(plan.target, goal, draws, eot=plan.budget.eot, steps=steps)], batch)]

    return craft


def _estimated(plan: Plan) -> Callable[[Batch], list[Tensor]]:
    """Of a random target the same few draws are asked every time, so that a difference is the flip's."""
    count = plan.budget.eot if plan.target.random else 1

    def craft(batch: Batch) -> list[Tensor]:
        ids, labels = NoiseSeeds(batch.ids, SeedStream.ATTACK).next(torch.arange(len(batch.ids)), count), batch.labels

        def lead(points: Tensor) -> Tensor:
            logits = plan.target.logits(points.repeat_interleave(count, 0), ids, plan.typical_steps)
            return _lead(logits, labels.repeat_interleave(count)).unflatten(0, (-1, count)).mean(1)

        generator = batch.generator()
        return [sign_hunter(lead, batch.images, eps=plan.eps, queries=plan.budget.estimates, generator=generator)]

    return craft


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) by how much the likeliest other class leads the label."""
    label = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - label


def _goals(plan: Plan, kind: str, batch: Batch) -> list[Goal]:
    if kind != TARGETED:
        return [untargeted(batch.labels, cross_entropy if kind == "cross-entropy" else margin)]
    logits = plan.target.answer(batch.images, NoiseSeeds(batch.ids, SeedStream.ATTACK).first()).logits
    return [targeted(batch.labels, target) for target in likeliest(logits, batch.labels, plan.budget.targets)]
