"""How much is spent on an attack."""

from dataclasses import asdict, dataclass, replace
from typing import Any

_EVERY_ROW = tuple(range(9))
DECADES = (-1.0, -0.25, 0.5, 1.25, 2.0)  # log10 of |lambda| in the paper's Table 3


@dataclass(frozen=True)
class Budget:
    """The effort of every row.

    Attributes:
        name: of the budget.
        images: of the data set, at most.
        expensive_share: of them for what costs most: deep loops, the unrolled loop, black boxes, AutoAttack on random
            defenses, the curves.
        noise_samples: R, how often a candidate is evaluated.
        reevaluations: R where candidates are chosen between, and R of the clean images.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
        patience: iterations that an image stays after all of a point's draws were answered wrong.
        depths: steps of the loop that are attacked.
        averaged_steps: steps whose gradients are averaged.
        targets: classes that Auto-PGD aims at, the likeliest first.
        unrolled: steps of the unrolled loop.
        unrolled_eot: draws there.
        unrolled_iterations: iterations there.
        queries: of the black boxes.
        estimates: answers that an estimate of a gradient's signs takes, where the gradient itself is another's.
        query_draws: answers that one decision of a black box is the mean of, each of them a query.
        autoattack: iterations and targets of AutoAttack's parts, its queries, and its draws in the version "rand".
        curve_eps: radii of accuracy against eps, in 255ths.
        curve_iterations: iterations of accuracy against attack steps.
        batch: images of one unit of work, after which the state is on the disk.
        compile: torch.compile the classifier that is attacked.
        rows: of the suite, where none are asked for.
    """

    name: str
    images: int
    expensive_share: float
    noise_samples: int
    reevaluations: int
    eot: int
    iterations: int
    patience: int
    depths: tuple[int, ...]
    averaged_steps: int
    targets: int
    unrolled: tuple[int, ...]
    unrolled_eot: int
    unrolled_iterations: int
    queries: int
    estimates: int
    query_draws: int
    autoattack: "AutoAttackEffort"
    curve_eps: tuple[float, ...]
    curve_iterations: tuple[int, ...]
    batch: int
    compile: bool
    rows: tuple[int, ...] = _EVERY_ROW

    def to_json(self) -> dict[str, Any]:
        """Every figure, by name."""
        return asdict(self)


@dataclass(frozen=True)
class AutoAttackEffort:
    """AutoAttack's own figures; what it is published with is ``AutoAttackEffort()``."""

    iterations: int = 100
    targets: int = 9
    queries: int = 5000
    eot: int = 20


SMOKE = Budget(
    name="smoke",
    images=16,
    expensive_share=0.5,
    noise_samples=5,
    reevaluations=10,
    eot=4,
    iterations=10,
    patience=2,
    depths=(5, 10, 20),
    averaged_steps=5,
    targets=1,
    unrolled=(5,),
    unrolled_eot=2,
    unrolled_iterations=5,
    queries=40,
    estimates=1024,
    query_draws=2,
    autoattack=AutoAttackEffort(iterations=5, targets=2, queries=100, eot=3),
    curve_eps=(4, 16),
    curve_iterations=(1, 5),
    batch=16,
    compile=False,
)
# A minute for a small model: are the gradients masked? It says little of what a defense is worth.
SCREEN = replace(
    SMOKE,
    name="screen",
    noise_samples=3,
    reevaluations=4,
    eot=2,
    depths=(5,),
    estimates=256,
    queries=100,
    curve_eps=(),
    rows=(0, 3, 6),
)
QUICK = replace(  # minutes on a GPU, with images enough for an interval
    SMOKE,
    name="quick",
    images=256,
    expensive_share=0.25,
    noise_samples=10,
    eot=8,
    iterations=20,
    patience=4,
    depths=(5, 10),
    autoattack=AutoAttackEffort(iterations=20, targets=3, queries=500, eot=5),
    batch=256,
    compile=True,
)
STANDARD = Budget(
    name="standard",
    images=1000,
    expensive_share=0.25,
    noise_samples=10,
    reevaluations=20,
    eot=20,
    iterations=100,
    patience=10,
    depths=(5, 10, 20),
    averaged_steps=10,
    targets=1,
    unrolled=(5, 20),
    unrolled_eot=4,
    unrolled_iterations=25,
    queries=5000,
    estimates=2048,
    query_draws=5,
    autoattack=AutoAttackEffort(),
    curve_eps=(2, 4, 16, 32),
    curve_iterations=(1, 3, 10, 30),
    batch=64,
    compile=True,
)
FULL = replace(
    STANDARD,
    name="full",
    images=10_000,
    expensive_share=0.1,
    averaged_steps=20,
    targets=9,
    unrolled=(5, 10, 20),
    unrolled_eot=20,
    unrolled_iterations=100,
    curve_eps=(1, 2, 4, 12, 16, 32),
    batch=250,
)
BUDGETS = {budget.name: budget for budget in (SCREEN, SMOKE, QUICK, STANDARD, FULL)}
