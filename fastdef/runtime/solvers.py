"""How far one step of Active Defense goes along the gradient."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from fastdef._validate import check_positive


class Solver(Protocol):
    """A rule for the step length; the direction is always that of the gradient."""

    def stride(self, loss: Tensor, direction: Tensor, *, delta: Tensor, features: int) -> Tensor | float:
        """What to multiply ``direction`` = M * dL_F/dt with, before it is subtracted from t.

        Args:
            loss: (N,) float32 L_F(t).
            direction: (N, C, H, W) float32.
            delta: () float32, the threshold to get under.
            features: M.

        Returns:
            A number, or a float32 tensor that broadcasts to ``direction``.
        """
        ...


@dataclass(frozen=True)
class Gradient:
    """t <- t - beta * dL_F/dt, Algorithm 1 as written.

    Attributes:
        beta: step size, in pixel units squared per unit of L_F.
    """

    beta: float = 80.0

    def __post_init__(self) -> None:
        check_positive(self.beta, name="beta", where="Gradient")

    def stride(self, loss: Tensor, direction: Tensor, *, delta: Tensor, features: int) -> float:
        """Beta / M, whatever the loss."""
        return self.beta / features


@dataclass(frozen=True)
class Polyak:
    """t <- t - (L_F(t) - target) / |dL_F/dt|^2 * dL_F/dt, with the target a little under the threshold.

    L_F is piecewise linear in t and its goal is known, which is all that Polyak's step length asks for: along the
    gradient, a linear L_F would meet the target in one step. Not in the paper. (B. T. Polyak, "Minimization of
    unsmooth functionals", 1969.)

    Attributes:
        margin: the target is (1 - margin) * delta; without a margin the steps only approach the threshold.
        most: no step is longer than ``most`` times the gradient, so that a flat spot is not leapt from.
    """

    margin: float = 0.02
    most: float = 2000.0

    def __post_init__(self) -> None:
        check_positive(self.margin, name="margin", where="Polyak")
        check_positive(self.most, name="most", where="Polyak")

    def stride(self, loss: Tensor, direction: Tensor, *, delta: Tensor, features: int) -> Tensor:
        """(L_F - target) * M / |direction|^2, at most ``most`` / M."""
        square = direction.square().sum(dim=(1, 2, 3))
        length = (loss - (1 - self.margin) * delta) * features / square.clamp_min(1e-30)
        return length.clamp_max(self.most / features).view(-1, 1, 1, 1)


_NAMES: dict[str, type[Gradient] | type[Polyak]] = {"gradient": Gradient, "polyak": Polyak}


def describe_solver(solver: Solver) -> dict[str, Any]:
    """What :func:`parse_solver` makes the same solver from; JSON can hold it.

    Raises:
        ValueError: for a solver of the caller's own, which a file cannot hold.
    """
    for name, kind in _NAMES.items():
        if isinstance(solver, Gradient | Polyak) and type(solver) is kind:
            return {"name": name, **asdict(solver)}
    raise ValueError(f"a model file or an export needs a solver among {', '.join(_NAMES)}, got {solver!r:.80}")


def parse_solver(described: Any) -> Solver:
    """The solver that a file describes.

    Raises:
        ValueError: if it describes none.
    """
    try:
        options = dict(described)
        return _NAMES[options.pop("name")](**options)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"a solver needs a name among {', '.join(_NAMES)} and its numbers, got {described}") from error
