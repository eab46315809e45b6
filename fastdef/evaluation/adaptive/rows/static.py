"""Row 1: the model without its defense under AutoAttack, which the defense must beat; for AFA, its parts too."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.score import by_label
from fastdef.evaluation.adaptive.target import FixedBatch, Target
from fastdef.evaluation.afa import submodels

NAME = "AutoAttack standard"
STATIC = f"{NAME}, without the defense"


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """AutoAttack on the classifier alone; where there is no other defense, this is an attack on the target."""
    model = plan.model
    if model is None:
        yield NotRun(1, NAME, "gradients are needed, and this target only answers")
        return
    name = STATIC if plan.guarded else NAME
    yield _case(plan, model, name, counts=not plan.guarded, compile=plan.budget.compile)
    for name, view in list(submodels(model).items())[1:]:
        yield _case(plan, model, f"{NAME}, {name}", counts=False, compile=False, view=view)


def _case(
    plan: Plan,
    model: nn.Module,
    name: str,
    *,
    counts: bool,
    compile: bool,
    view: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> AttackCase:
    effort = plan.budget.autoattack
    attacked = FixedBatch(model, min(plan.budget.batch, plan.images), compile=True) if compile else model
    craft = Standard(plan, model, attacked, effort.iterations, effort.targets, effort.queries)
    evaluate, images = by_label(Target.plain(model)), plan.images
    return AttackCase(1, name, craft, evaluate, plan.eps, images, 1, counts=counts, keeps=True, view=view)


@dataclass(frozen=True)
class Standard(Attack):
    """AutoAttack standard on a model alone.

    Attributes:
        model: that is attacked.
        run: the same, as it is run.
        iterations: of its parts.
        targets: of its targeted parts.
        queries: of its black box.
    """

    model: nn.Module = field(repr=False, metadata=UNRECORDED)
    run: nn.Module = field(repr=False, metadata=UNRECORDED)
    iterations: int
    targets: int
    queries: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Wrongly answered points, or the images."""
        effort = AutoAttackEffort(self.iterations, self.targets, self.queries)
        attack = partial(autoattack.standard, eps=self.plan.eps, effort=effort, seed=batch.seed)
        with frozen_eval(self.model):
            return [attack(self.run, batch.images, batch.labels)]
