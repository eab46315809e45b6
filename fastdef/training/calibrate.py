"""The defense of a model file, made anew for other parameters or other data."""

import os
from typing import Any

from fastdef.checkpoint import Checkpoint, load_for, save
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense, Gradient
from fastdef.runtime import Solver, parse_solver

CALIBRATED_ON = 2000  # images; their mean L_F is known to a percent


def calibrate(
    path: str | os.PathLike[str],
    dataset: Dataset,
    *,
    layer: str | None = None,
    sigma: float | None = None,
    beta: float | None = None,
    solver: str | None = None,
    max_steps: int | None = None,
    outer_loops: int | None = None,
    ratio: float = 0.92,
    bfloat16: bool = False,
    device: str = "cpu",
    source: str | None = None,
) -> dict[str, Any]:
    """Rewrite a model file's Active Defense, its threshold at ``ratio`` times the mean L_F of clean images.

    What is not given stays as the file has it, or is the paper's where it has no Active Defense.

    Args:
        path: the model file.
        dataset: clean images that nothing will be reported on; 2,000 of them are used, of each class its share.
        layer: whose output is smoothed.
        sigma: half width of the noise.
        beta: step size.
        solver: "gradient", Algorithm 1 as written with ``beta``, or "polyak".
        max_steps: steps an outer loop may take.
        outer_loops: how often an image is noised, smoothed and classified.
        ratio: of the threshold to the clean L_F.
        bfloat16: also see whether bfloat16 decides as float32 does, and keep that for ``dtype="auto"``.
        device: where the model runs.
        source: code that builds the network, as ``fastdef.load`` takes it.

    Returns:
        The defense that the file now has.

    Raises:
        ValueError: if the file is not a model file, does not fit the images, or a parameter is out of its range; the
            file is then as it was.
    """
    checkpoint = load_for(path, dataset, device=device, labels=False, source=source)
    given: dict[str, Any] = {
        "layer": layer,
        "sigma": sigma,
        "beta": beta,
        "max_steps": max_steps,
        "outer_loops": outer_loops,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if solver is not None:
        options["solver"] = _solver(solver, beta, checkpoint)
    if (checkpoint.defense or {}).get("kind") == "active":
        defense = ActiveDefense.from_checkpoint(checkpoint, **options)
    else:
        defense = ActiveDefense(checkpoint.model, **options)
    defense.calibrate(dataset.subset(CALIBRATED_ON).floats(0, CALIBRATED_ON).to(device), ratio=ratio, compare=bfloat16)
    save(
        path,
        checkpoint.model,
        architecture=checkpoint.architecture,
        classes=checkpoint.classes,
        defense=defense.config(),
        training=checkpoint.training,
    )
    return defense.config()


def _solver(name: str, beta: float | None, checkpoint: Checkpoint) -> Solver:
    if name == "gradient":
        return Gradient((checkpoint.defense or {}).get("beta", Gradient.beta) if beta is None else beta)
    if beta is not None:
        raise ValueError(f"beta is the step size of the solver gradient, and {name} takes none: leave it out")
    return parse_solver({"name": name})
