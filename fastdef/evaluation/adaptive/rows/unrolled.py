"""Row 4: the true gradient through a loop whose kinks are rounded off."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fastdef.attacks import frozen_eval, untargeted
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Batch, NotRun, Plan
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
        craft = Unrolled(plan, defense, steps, budget.unrolled_eot, budget.unrolled_iterations)
        name = f"APGD-CE, smoothed unroll of {steps} steps"
        yield AttackCase(4, name, craft, by_label(plan.target), plan.eps, plan.expensive_images, plan.noise_samples)


@dataclass(frozen=True)
class Unrolled(Attack):
    """Auto-PGD by the gradient of second order, |.| and ReLU rounded.

    Attributes:
        defense: that is unrolled.
        steps: of its loop.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
    """

    defense: ActiveDefense = field(repr=False, metadata=UNRECORDED)
    steps: int
    eot: int
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        goal, draws = untargeted(batch.labels), NoiseSeeds(batch.ids, SeedStream.ATTACK)
        with frozen_eval(self.defense.model):
            ask = unrolled(self.defense, goal, draws, eot=self.eot, steps=self.steps, batch=self.plan.target.batch)
            return [self.plan.search([ask], batch, iterations=self.iterations)]
