"""A count of right answers, and how far it may be trusted."""

import math
from dataclasses import dataclass
from typing import Any

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of all.

    Attributes:
        correct: right answers.
        count: answers.
    """

    correct: int
    count: int

    def __post_init__(self) -> None:
        if not (0 <= self.correct <= self.count and self.count > 0):
            raise ValueError(f"Accuracy needs 0 <= correct <= count and count > 0, got {self.correct} of {self.count}")

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson, 1927), which holds near 0 and 1 too."""
        n, p, z = self.count, self.value, _Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(self.correct + other.correct, self.count + other.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({self.correct}/{self.count}, 95 % interval {low:.1%} to {high:.1%})"

    def to_json(self) -> dict[str, Any]:
        """Value, counts and interval."""
        return {"value": self.value, "correct": self.correct, "count": self.count, "interval": list(self.interval)}
