"""Row 3: BPDA with expectation over the noise, by three losses and several lengths of the loop."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from fastdef.attacks import Goal, Query, cross_entropy, likeliest, margin, targeted, untargeted
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda, iterates
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label

TARGETED = "targeted DLR"
NAMES = {"cross-entropy": "APGD-CE", "margin": "C&W margin, APGD", TARGETED: "APGD-DLR, targeted"}


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Every loss at every depth; and the gradient averaged along the way."""
    budget, defense = plan.budget, plan.target.defense
    if plan.target.purify is None:
        reason = "nothing stands before the classifier; row 1 attacks it" if plan.target.classifier else "no gradients"
        yield NotRun(3, "BPDA", reason)
        return
    depths: tuple[int | None, ...] = (None,) if defense is None else budget.depths
    base = AttackCase(3, "", lambda batch: [], by_label(plan.target), plan.eps, plan.images, plan.noise_samples)
    for depth in depths:
        deepest = depth is not None and depth == max(budget.depths) > min(budget.depths)
        images = plan.heavy if deepest else plan.images
        for kind, name in NAMES.items():
            if kind == TARGETED and plan.classes < 4:
                yield NotRun(3, name, f"its loss needs four classes, and there are {plan.classes}")
                continue
            label = name if depth is None else f"{name} through {depth} steps"
            settings = {**plan.typical, "steps": depth, "loss": kind}
            yield replace(base, name=label, craft=_through(plan, kind, depth), images=images, settings=settings)
    if defense is not None:
        steps = budget.along
        settings = {**plan.typical, "gradient": "BPDA, mean over the iterates", "steps": steps}
        name = f"APGD-CE, mean gradient of {steps} steps"
        yield replace(base, name=name, craft=_along(plan, steps), images=plan.heavy, settings=settings)


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


def _goals(plan: Plan, kind: str, batch: Batch) -> list[Goal]:
    if kind != TARGETED:
        return [untargeted(batch.labels, cross_entropy if kind == "cross-entropy" else margin)]
    logits = plan.target.answer(batch.images, NoiseSeeds(batch.ids, SeedStream.ATTACK).first()).logits
    return [targeted(batch.labels, target) for target in likeliest(logits, batch.labels, plan.budget.targets)]
