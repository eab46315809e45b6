"""The results of a suite: its lines, the checks on itself, and the headline."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive.alignment import ALIGNED
from fastdef.evaluation.adaptive.attack_case import AttackCase, NotRun
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.rows.bpda import ESTIMATED
from fastdef.evaluation.adaptive.rows.static import STATIC
from fastdef.evaluation.adaptive.rows.transfer import PGD
from fastdef.evaluation.adaptive.score import Score

_HUGE_LEAVES = 0.05  # what may stand at eps = 64/255
_PLANTED_MISSED = 0.1  # share of planted examples that an attack may miss
_BY_GRADIENT = {3, 4, 5, 8}  # rows whose attacks follow the gradient of what is deployed
_SLACK = 0.05  # by which the loss may fall from fewer to more iterations


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        case: what was done.
        score: what it came to; None where nothing could be evaluated.
        crafting: seconds an image, for the attack.
        evaluating: seconds an image, for all its answers.
        examples: (K, C, H, W) the attacked images that are answered right least often.
        places: theirs in the data set.
        steps: of the defense, of every answer.
    """

    case: AttackCase
    score: Score | None
    crafting: float
    evaluating: float
    examples: Tensor
    places: list[int]
    steps: list[int]

    @property
    def label(self) -> str:
        """Row and name."""
        return f"{self.case.row} {self.case.name}"

    def to_json(self) -> dict[str, Any]:
        """Every figure, by name; eps in 255ths."""
        return {
            "row": self.case.row,
            "name": self.case.name,
            "eps": round(self.case.eps * 255, 6),
            "counts": self.case.counts,
            **({} if self.score is None else self.score.to_json()),
            "seconds_to_attack_an_image": self.crafting,
            "seconds_to_answer_an_image": self.evaluating / self.case.noise_samples,
            "settings": self.case.craft.settings,
        }


@dataclass(frozen=True)
class Check:
    """Something that must hold for the rest to mean anything.

    Attributes:
        name: what.
        passed: whether it does.
        detail: the numbers it hangs on.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class AdaptiveResults:
    """The results of :func:`evaluate_adaptive`.

    Attributes:
        lines: of the table.
        not_run: cases that there are not for this target, and why.
        settings: all that the accuracies depend on.
        random: whether the target draws noise.
        alignment: of the attacks' gradient with finite differences of the answers, see :func:`alignment`; None where
            it was not asked for.
    """

    lines: list[Line]
    not_run: list[NotRun]
    settings: dict[str, Any]
    random: bool
    alignment: float | None = None

    @property
    def headline(self) -> Line | None:
        """The strongest of the attacks within eps on what is deployed.

        It is chosen by half of the noise samples, and its figure is the mean over the others.
        """
        counted = [line for line in self.lines if line.case.counts and line.score is not None]
        return min(counted, key=lambda line: line.score.selection if line.score else 1.0, default=None)

    def line(self, row: int, name: str) -> Line | None:
        """A line that was evaluated, by its row and name."""
        return next((n for n in self.lines if n.case.row == row and n.case.name == name and n.score), None)

    @property
    def sentence(self) -> str:
        """What the strongest attack leaves, in words."""
        line = self.headline
        if line is None or line.score is None:
            return "No attack within eps was run: nothing can be said of what this is worth."
        figure, count = line.score.judgement, line.score.count
        low, high = Accuracy(round(figure * count), count).interval
        eps = line.case.eps * 255
        said = (
            f"The strongest attack, row {line.case.row}'s {line.case.name}, leaves an accuracy of {figure:.1%} "
            f"within eps {eps:g}/255 ({count} images, 95 % interval {low:.1%} to {high:.1%})."
        )
        if line.score.noise_samples > 1:
            said += " It was chosen by half of the noise samples and judged by the others."
        clean, naive, static = self.line(0, sanity.CLEAN), self.line(2, PGD), self.line(1, STATIC)
        if clean is not None and clean.score is not None:
            said += f" Clean images: {clean.score.mean:.1%}."
        if naive is not None and naive.score is not None:
            said += f" A static attack leaves {naive.score.mean:.1%}."
        if static is not None and static.score is not None:
            said += f" Without the defense AutoAttack leaves {static.score.mean:.1%}."
        return said

    @property
    def checks(self) -> list[Check]:
        """The suite's checks on itself, of those rows that were run."""
        checks = [
            self._answered(),
            self._huge(),
            self._noise(),
            self._rising(),
            self._planted(),
            self._aligned(),
            self._masked(),
        ]
        return [check for check in checks if check is not None]

    @property
    def passed(self) -> bool:
        """Whether every check holds; where one does not, the headline is an upper bound at best."""
        return all(check.passed for check in self.checks)

    @property
    def dtype(self) -> str:
        """Of the networks of what is deployed; attacks differentiate in float32."""
        defense = self.settings["defense"]
        return "float32" if defense is None else str(defense["dtype"])

    def lines_json(self) -> list[dict[str, Any]]:
        """Every line with what it was made with."""
        made = {"seed": self.settings["seed"], "device": self.settings["device"], "dtype": self.dtype}
        return [{**line.to_json(), **made} for line in self.lines]

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        headline = self.headline
        return {
            "headline": None if headline is None or headline.score is None else headline.score.judgement,
            "headline_of": None if headline is None else headline.label,
            "sentence": self.sentence,
            "passed": self.passed,
            "alignment": self.alignment,
            "checks": [check.__dict__ for check in self.checks],
            "lines": self.lines_json(),
            "not_run": [case.__dict__ for case in self.not_run],
            "settings": self.settings,
        }

    def _answered(self) -> Check | None:
        lines = [line for line in self.lines if line.score is not None and line.score.unanswered]
        if not lines:
            return None
        worst = max(lines, key=lambda line: line.score.unanswered if line.score else 0)
        count = worst.score.unanswered if worst.score else 0
        return Check("every answer is a number", False, f"{count} are NaN or infinite under {worst.label}: not right")

    def _huge(self) -> Check | None:
        line = self.line(0, sanity.HUGE)
        if line is None or line.score is None:
            return None
        return Check(
            "nothing stands at eps 64/255",
            line.score.mean <= _HUGE_LEAVES,
            f"{line.score.mean:.1%} answered right, at most {_HUGE_LEAVES:.0%} may be",
        )

    def _noise(self) -> Check | None:
        line, headline = self.line(0, sanity.NOISE), self.headline
        if line is None or line.score is None or headline is None or headline.score is None:
            return None
        return Check(
            "attacks do more than random noise",
            headline.score.judgement <= line.score.mean,
            f"noise leaves {line.score.mean:.1%}, the strongest attack {headline.score.judgement:.1%}",
        )

    def _rising(self) -> Check | None:
        curve = [n for n in self.lines if n.case.name.startswith(f"{sanity.CURVE} iterations") and n.score]
        losses = [line.score.loss for line in curve if line.score]
        if len(losses) < 2:
            return None
        rises = all(after >= before * (1 - _SLACK) for before, after in pairwise(losses))
        return Check("the loss rises with the iterations", rises, ", ".join(f"{loss:.2f}" for loss in losses))

    def _planted(self) -> Check | None:
        line = next((n for n in self.lines if n.case.row == 0 and n.case.name == sanity.PLANTED), None)
        if line is None:
            return None
        if line.score is None:
            return Check("planted adversarial examples are found", False, "none could be planted")
        detail = f"{1 - line.score.mean:.1%} of {line.score.count} found, {1 - _PLANTED_MISSED:.0%} needed"
        return Check("planted adversarial examples are found", line.score.mean <= _PLANTED_MISSED, detail)

    def _aligned(self) -> Check | None:
        if self.alignment is None:
            return None
        detail = f"correlation {self.alignment:.2f} with finite differences, {ALIGNED:g} needed"
        estimated = self.line(3, ESTIMATED)
        if self.alignment < ALIGNED and estimated is not None:
            detail += f"; {estimated.label} attack without it"
        return Check("gradients are those of what is deployed", self.alignment >= ALIGNED, detail)

    def _masked(self) -> Check | None:
        """A black box sees less than a gradient: where it does more, that leads nowhere (Carlini et al., 2019)."""
        black = self._lowest(lambda line: line.case.row == 6 or line.case.name == ESTIMATED)
        white = self._lowest(lambda line: line.case.row in _BY_GRADIENT and line.case.name != ESTIMATED)
        if black is None or white is None:
            return None
        (by_answers, answers), (by_gradients, gradients) = black, white
        detail = f"{by_answers.label} leaves {answers.mean:.1%}, {by_gradients.label} {gradients.mean:.1%}"
        return Check("gradients do as much as answers alone", answers.interval[1] >= gradients.interval[0], detail)

    def _lowest(self, kind: Callable[[Line], bool]) -> tuple[Line, Score] | None:
        """Of the attacks that count and are of a kind, the one that leaves least."""
        found = [
            (line, line.score) for line in self.lines if line.case.counts and line.score is not None and kind(line)
        ]
        return min(found, key=lambda pair: pair[1].mean, default=None)
