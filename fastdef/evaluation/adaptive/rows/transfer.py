"""Row 2: images attacked elsewhere, which is all that the papers' black-box tables ask of an attacker."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from fastdef.attacks import apgd, mifgsm, pgd
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan, key_of
from fastdef.evaluation.adaptive.rows.static import STATIC
from fastdef.evaluation.adaptive.score import by_label

PGD = "PGD on the model without the defense"


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Crafted on the undefended model, and on a surrogate."""
    base = AttackCase(2, PGD, lambda batch: [], by_label(plan.target), plan.eps, plan.images, plan.noise_samples)
    if plan.guarded and plan.model is not None:
        static = key_of(1, STATIC)
        yield replace(base, craft=_crafted(_pgd, plan.model, plan))
        yield replace(base, name="APGD-CE on the same", craft=_crafted(_apgd, plan.model, plan))
        yield replace(base, name="AutoAttack on the same", craft=lambda batch: [batch.kept(static)], needs=static)
    if plan.surrogate is None:
        yield NotRun(2, "a surrogate's images", "no independent model was given")
        return
    for name, attack in {"PGD": _pgd, "MI-FGSM": _mifgsm, "APGD-CE": _apgd}.items():
        yield replace(base, name=f"{name} on the surrogate", craft=_crafted(attack, plan.surrogate, plan))


_Attack = Callable[[nn.Module, Batch, Plan], Tensor]


def _crafted(attack: _Attack, model: nn.Module, plan: Plan) -> Callable[[Batch], list[Tensor]]:
    return lambda batch: [attack(model, batch, plan)]


def _pgd(model: nn.Module, batch: Batch, plan: Plan) -> Tensor:
    step = plan.eps / 4
    return pgd(model, batch.images, batch.labels, eps=plan.eps, step=step, steps=20, generator=batch.generator())


def _mifgsm(model: nn.Module, batch: Batch, plan: Plan) -> Tensor:
    return mifgsm(model, batch.images, batch.labels, eps=plan.eps, step=plan.eps / 10, steps=10)


def _apgd(model: nn.Module, batch: Batch, plan: Plan) -> Tensor:
    return apgd(
        model,
        batch.images,
        batch.labels,
        eps=plan.eps,
        iterations=plan.budget.iterations,
        generator=batch.generator(),
    )
