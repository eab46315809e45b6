"""What an evaluation keeps of the defense that it met."""

from typing import Any

from fastdef.defense import ActiveDefense


def described(defense: ActiveDefense) -> dict[str, Any]:
    """All that its answers depend on, beside the model; JSON-able, whatever the solver."""
    names = ("layer", "sigma", "beta", "delta", "max_steps", "outer_loops", "clamp", "seed")
    options = {"solver": repr(defense.solver), "dtype": str(defense.dtype).removeprefix("torch.")}
    return {"kind": "active", **{name: getattr(defense, name) for name in names}, **options}
