"""Row 2: images attacked elsewhere, which is all that the papers' black-box tables ask of an attacker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from fastdef.attacks import apgd, mifgsm, pgd
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Batch, Kept, NotRun, Plan, key_of
from fastdef.evaluation.adaptive.rows.static import STATIC
from fastdef.evaluation.adaptive.score import by_label

PGD = "PGD on the model without the defense"


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Crafted on the undefended model, and on a surrogate."""
    case = partial(
        AttackCase,
        2,
        evaluate=by_label(plan.target),
        eps=plan.eps,
        images=plan.images,
        noise_samples=plan.noise_samples,
    )
    if plan.guarded and plan.model is not None:
        static = key_of(1, STATIC)
        yield case(PGD, Transfer(plan, plan.model, "PGD", _STEPS))
        yield case("APGD-CE on the same", Transfer(plan, plan.model, "APGD-CE", plan.budget.iterations))
        yield case("AutoAttack on the same", Kept(plan, static), needs=static)
    if plan.surrogate is None:
        yield NotRun(2, "a surrogate's images", "no independent model was given")
        return
    for name, steps in {"PGD": _STEPS, "MI-FGSM": 10, "APGD-CE": plan.budget.iterations}.items():
        yield case(f"{name} on the surrogate", Transfer(plan, plan.surrogate, name, steps))


_STEPS = 20  # of PGD


@dataclass(frozen=True)
class Transfer(Attack):
    """An attack on a model alone.

    Attributes:
        model: that is attacked.
        attack: "PGD", "MI-FGSM" or "APGD-CE".
        steps: that it takes.
    """

    model: nn.Module = field(repr=False, metadata=UNRECORDED)
    attack: str
    steps: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The points that it ends at, or the best of Auto-PGD."""
        eps, generator = self.plan.eps, batch.generator()
        attacks = {
            "PGD": partial(pgd, step=eps / 4, steps=self.steps, generator=generator),
            "MI-FGSM": partial(mifgsm, step=eps / 10, steps=self.steps),
            "APGD-CE": partial(apgd, iterations=self.steps, generator=generator),
        }
        return [attacks[self.attack](self.model, batch.images, batch.labels, eps=eps)]
