"""Which part holds which images, which are done, and what a folder was begun with."""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdef._version import VERSION
from fastdef.checkpoint import check_same, load
from fastdef.data import sha256
from fastdef.io import make_folder, read_record, write_json
from fastdef.offline.part import Recipe

_RECORD = "settings.json"


@dataclass(frozen=True)
class Plan:
    """Parts of so many images in a folder.

    Attributes:
        folder: of the parts.
        recipe: of the rows.
        part_size: images of a part; the last has what is left.
    """

    folder: Path
    recipe: Recipe
    part_size: int

    @classmethod
    def begin(cls, folder: Path, recipe: Recipe, *, part_size: int, seed: int | None, resume: bool) -> "Plan":
        """A plan, and its record in the folder.

        Args:
            folder: made if it is not there.
            recipe: of the rows, but for the seed.
            part_size: images of a part.
            seed: of the noise. If not given, the folder's where it is resumed, else one drawn from the system; the
                record holds it, since a run that is resumed needs it.
            resume: go on with what the folder holds; else it must hold nothing.

        Raises:
            ValueError: for no image, a folder that is in use, or one that was begun with other settings.
        """
        if not len(recipe.images):
            raise ValueError("needs at least one image, got none")
        record = folder / _RECORD
        stored = read_record(record, "the settings of a run") if record.is_file() else None
        if stored is not None and not resume:
            raise ValueError(f"{folder} holds answers already: add --resume to go on, or give another folder")
        if seed is None:
            seed = secrets.randbits(63) if stored is None else stored.get("seed", 0)
        plan = cls(folder, replace(recipe, seed=seed), part_size)
        if stored is not None:
            check_same(plan._settings(), stored)
        elif folder.is_dir() and any(folder.glob("*.parquet")):
            raise ValueError(f"{folder} needs to be empty or begun by this command, and holds other parquet files")
        else:
            make_folder(folder)
            write_json(record, plan._settings())
        return plan

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-len(self.recipe.images) // self.part_size)

    def numbers(self, part: int) -> range:
        """The images of a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, len(self.recipe.images)))

    def path(self, part: int) -> Path:
        """Its file."""
        return self.folder / f"part-{part:06d}-of-{self.parts:06d}.parquet"

    def todo(self) -> list[int]:
        """The parts that are not there."""
        return [part for part in range(self.parts) if not self.path(part).is_file()]

    def refused(self) -> int:
        """How many images have an error in place of an answer, once every part is there.

        Raises:
            ValueError: if an image has no row, or more than one.
        """
        from pyarrow import parquet

        refused = 0
        for part in range(self.parts):
            table = parquet.read_table(self.path(part), columns=["id", "error"])
            if table.column("id").to_pylist() != list(self.numbers(part)):
                raise ValueError(f"{self.path(part)} needs a row for each of its images: remove it, and --resume")
            refused += len(table) - table.column("error").null_count
        return refused

    def _settings(self) -> dict[str, Any]:
        """All that a row depends on."""
        recipe = self.recipe
        checkpoint = load(recipe.model, source=recipe.source)
        rest = ("seed", "max_steps", "deterministic", "compile", "size", "resize", "background")
        return {
            "version": VERSION,
            "model": sha256(checkpoint.model.state_dict().values()),
            "defense": checkpoint.defense,
            "images": {"count": len(recipe.images), "files": recipe.images.digest},
            "device": recipe.device.partition(":")[0],
            "dtype": str(recipe.dtype)[6:],
            "part_size": self.part_size,
            **{name: getattr(recipe, name) for name in rest},
        }
