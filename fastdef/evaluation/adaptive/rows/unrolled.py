"""Row 4: the true gradient through a loop whose kinks are rounded off."""

from collections.abc import Callable, Iterator

from torch import Tensor

from fastdef.attacks import frozen_eval, untargeted
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label
from fastdef.evaluation.adaptive.unroll import unrolled


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Every length of the unrolled loop."""
    budget, defense = plan.budget, plan.target.defense
    if defense is None:
        yield NotRun(4, "smoothed unroll", "there is no Active Defense to unroll")
        return
    for steps in budget.unrolled:
        settings = {
            "gradient": "second order, |.| and ReLU rounded",
            "steps": steps,
            "eot": budget.unrolled_eot,
            "iterations": budget.unrolled_iterations,
        }
        yield AttackCase(
            4,
            f"APGD-CE, smoothed unroll of {steps} steps",
            _craft(plan, defense, steps),
            by_label(plan.target),
            plan.eps,
            plan.expensive_images,
            plan.noise_samples,
            settings=settings,
        )


def _craft(plan: Plan, defense: ActiveDefense, steps: int) -> Callable[[Batch], list[Tensor]]:
    budget = plan.budget

    def craft(batch: Batch) -> list[Tensor]:
        goal, draws = untargeted(batch.labels), NoiseSeeds(batch.ids, SeedStream.ATTACK)
        with frozen_eval(defense.model):
            ask = unrolled(defense, goal, draws, eot=budget.unrolled_eot, steps=steps, batch=plan.target.batch)
            return [plan.search([ask], batch, iterations=budget.unrolled_iterations)]

    return craft
