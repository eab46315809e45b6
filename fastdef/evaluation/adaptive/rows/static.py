"""Row 1: the model without its defense under AutoAttack, which the defense must beat; for AFA, its parts too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
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

    def craft(batch: Batch) -> list[Tensor]:
        with frozen_eval(model):
            return [
                autoattack.standard(attacked, batch.images, batch.labels, eps=plan.eps, effort=effort, seed=batch.seed)
            ]

    return AttackCase(
        1,
        name,
        craft,
        by_label(Target.plain(model)),
        eps=plan.eps,
        images=plan.images,
        noise_samples=1,
        counts=counts,
        keeps=True,
        settings={"iterations": effort.iterations, "targets": effort.targets, "queries": effort.queries},
        view=view,
    )
