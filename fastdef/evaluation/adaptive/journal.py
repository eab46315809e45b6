"""The state of a suite on the disk: one file a unit of work, whole or not there."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.checkpoint import check_same
from fastdef.evaluation.adaptive.attack_case import Predictions
from fastdef.evaluation.adaptive.probe import Probe, check_probe
from fastdef.io import atomic_write, make_folder, read_record, write_json

_ANSWERS = ("right", "steps", "capped", "loss", "answered")
_IMAGES = ("images", "examples", "places")


@dataclass(frozen=True)
class Unit:
    """What is kept of a case's batch.

    Attributes:
        predictions: the answers.
        images: (M, C, H, W) all that was attacked, where another case needs it; else none.
        examples: (K, C, H, W) the attacked images that are answered right least often; none where
            some were not evaluated.
        places: (K,) int64 theirs in the batch.
        crafting: seconds that the attack took.
        evaluating: seconds that the answers took.
    """

    predictions: Predictions
    images: Tensor
    examples: Tensor
    places: Tensor
    crafting: float
    evaluating: float


class Journal:
    """Units in a folder, which belong to one set of settings.

    Args:
        folder: made if it is not there.
        settings: JSON-able; all that a result depends on.
        known: what the target is known by, see :func:`probe`.
        resume: go on with what is there; else there must be nothing.

    Raises:
        ValueError: if there is something and ``resume`` is not set, or it was made with other settings,
            or with another target.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], known: Probe, *, resume: bool) -> None:
        self._folder = folder / "units"
        record = folder / "settings.json"
        if record.is_file():
            if not resume:
                raise ValueError(f"{folder} holds an evaluation already; resume it, or give another folder")
            stored = read_record(record, "the settings of an evaluation")
            before = stored.pop("probe", {})
            check_same(settings, stored)
            check_probe(known, before)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)  # units of no settings are nobody's
            make_folder(self._folder)
            write_json(record, {**settings, "probe": known})

    def read(self, key: str, number: int) -> Unit | None:
        """A unit, or None where it is still to be done.

        Raises:
            ValueError: if its file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(key, number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
                seconds = json.loads((file.metadata() or {})["seconds"])
                predictions = Predictions(*(tensors[name] for name in _ANSWERS))
                return Unit(predictions, *(tensors[name] for name in _IMAGES), *seconds)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a whole unit of an evaluation: {' '.join(str(error).split())}") from error

    def write(self, key: str, number: int, unit: Unit) -> None:
        """Keep a unit.

        Raises:
            ValueError: if it cannot be written.
        """
        from safetensors.torch import save

        tensors = {**unit.predictions.__dict__, **{name: getattr(unit, name) for name in _IMAGES}}
        content = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with atomic_write(self._path(key, number)) as temporary:
            temporary.write_bytes(save(content, metadata={"seconds": json.dumps([unit.crafting, unit.evaluating])}))

    def _path(self, key: str, number: int) -> Path:
        return self._folder / f"{key}-{number:05d}.safetensors"


def joined(units: list[Unit]) -> Predictions:
    """The predictions of a case's units, one after the other."""
    return Predictions(*(torch.cat([getattr(unit.predictions, name) for unit in units]) for name in _ANSWERS))
