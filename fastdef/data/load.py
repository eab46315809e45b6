"""Data sets by name."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from torch import Tensor

from fastdef.data._decode import Decoder
from fastdef.data._errors import one_line, readable
from fastdef.data._facts import FACTS, Facts
from fastdef.data._idx import find_idx, read_idx
from fastdef.data._parquet import find_parquet, read_parquet
from fastdef.data._tree import WHOLE, ClassOrder, find_tree, read_tree
from fastdef.data.dataset import Dataset

SPLITS = ("train", "test", "fit", "validation", WHOLE)


def load_dataset(
    name: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    background: str | None = None,
    class_order: ClassOrder = "text",
    size: int | None = None,
) -> Dataset:
    """Read a split of a data set into memory.

    What ``root`` holds decides how it is read: parquet files in the hub's schema, Fashion-MNIST's IDX files, or images
    by class (root/train/<class>/**/*.png), for which any name will do. Images come as a viewer shows them, in the order
    they are stored in; the data set's notes say what was done to them. The classes that parquet files or folders name
    win: a known name has the number that it always has.

    Args:
        name: cifar10, cifar100, svhn, tiny-imagenet, fashion-mnist; or your own, for images by class.
        split: "train" or "test"; or "validation", of images by class the folder val or validation where there is one,
            else a tenth of train; or "fit", the rest of train; "all" for images by class that are not split
            (root/<class>/*.png).
        root: folder that holds the data.
        download: fetch it from the Hugging Face hub instead; the only thing here that uses the network.
        background: colour to put under images that are not opaque, such as "white"; they are refused without.
        class_order: of folders that are classes: "text", as torchvision's ImageFolder has them, or "number".
        size: height and width to scale images by class to (bilinear, antialiased); without it all have one size.

    Raises:
        ValueError: for an unknown name or split, a size for files whose images have one, or files that are missing,
            damaged, or of another schema.
    """
    if split not in SPLITS:
        raise ValueError(f"load_dataset needs a split among {', '.join(SPLITS)}, got {split!r}")
    with _source(name, split, root, download, background, class_order, size) as source:
        return source.split(split)


def load_training(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    background: str | None = None,
    class_order: ClassOrder = "text",
    size: int | None = None,
) -> tuple[Dataset, Dataset]:
    """The splits "fit" and "validation" of :func:`load_dataset`, read once; the arguments and errors are its own."""
    with _source(name, "train", root, download, background, class_order, size) as source:
        return source.training()


@contextmanager
def _source(
    name: str,
    split: str,
    root: str | os.PathLike[str] | None,
    download: bool,
    background: str | None,
    class_order: ClassOrder,
    size: int | None,
) -> Iterator["_Source"]:
    """The folder that holds a split, fetched where it is to be; what cannot be read within is a ValueError."""
    if class_order not in get_args(ClassOrder):
        raise ValueError(f"load_dataset needs a class order among text and number, got {class_order!r}")
    if root is None and not download:
        raise ValueError(f"load_dataset needs root, a folder that holds {name}, or download=True, got neither")
    decoder = Decoder(background)
    folder = Path(root) if root is not None else _download(name, split if split in ("test", WHOLE) else "train")
    with readable(folder):
        if not folder.is_dir():
            raise ValueError(f"load_dataset needs root to be a folder that holds {name}, got {folder}")
        yield _Source(name, folder, decoder, class_order, size)


@dataclass(frozen=True)
class _Source:
    """A data set in a folder."""

    name: str
    root: Path
    decoder: Decoder
    class_order: ClassOrder
    size: int | None

    def split(self, split: str) -> Dataset:
        """Of train, what is held out is a tenth, unless it has a folder of its own."""
        if split not in ("fit", "validation"):
            return self._read(split)
        if self._has_folder_of_validation():
            return replace(self._read("train" if split == "fit" else split), split=split)
        train = self._read("train")
        return train.fit() if split == "fit" else train.validation()

    def training(self) -> tuple[Dataset, Dataset]:
        """What to fit to, and what is held out."""
        if self._has_folder_of_validation():
            return self.split("fit"), self.split("validation")
        train = self._read("train")
        return train.fit(), train.validation()

    def _has_folder_of_validation(self) -> bool:
        return find_tree(self.root, "validation") is not None and self._find_files("train") is None

    def _read(self, split: str) -> Dataset:
        found = self._find_files(split)
        images, labels, classes, notes = self._read_tree(split) if found is None else (*found(), ())
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            got = "{} x {}".format(*images.shape[2:])
            raise ValueError(f"images by class are scaled to a size, and {self.root} holds {self.name} in {got}")
        facts = FACTS.get(self.name)
        flip = facts is None or facts.flip
        return Dataset(images, labels, classes, self.name, split, flip, (*notes, *self.decoder.notes))

    def _find_files(self, split: str) -> Callable[[], tuple[Tensor, Tensor, tuple[str, ...]]] | None:
        """What reads the files of a known data set, or None where there are none."""
        facts = FACTS.get(self.name)
        if facts is None or split not in facts.files:
            return None
        if files := find_parquet(self.root, facts, split):
            return lambda: read_parquet(files, facts, self.decoder)
        if self.name == "fashion-mnist" and (pair := find_idx(self.root, split)):
            return lambda: (*read_idx(pair, facts), facts.classes)
        return None

    def _read_tree(self, split: str) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
        facts = FACTS.get(self.name)
        folder = find_tree(self.root, split)
        if folder is None:
            raise ValueError(_missing(self.name, facts, self.root, split))
        mode, known = (None, ()) if facts is None else (facts.mode, facts.classes)
        return read_tree(
            folder, decoder=self.decoder, mode=mode, known=known, class_order=self.class_order, size=self.size
        )


def _missing(name: str, facts: Facts | None, root: Path, split: str) -> str:
    splits = [there for there in ("train", "validation", "test", WHOLE) if find_tree(root, there)]
    if facts is None and not splits:
        named = ", ".join(FACTS)
        return (
            f"load_dataset needs a name among {named}, or a root of images by class (train/<class>/*.png), got {name!r}"
        )
    ways = ["<class>/*.png" if split == WHOLE else f"{split}/<class>/*.png"]
    if facts is not None and split in facts.files:
        ways = [f"{facts.files[split]}-*.parquet", *(["IDX files"] if name == "fashion-mnist" else []), *ways]
    got = f"images by class of the split {' and '.join(splits)}" if splits else "none of it"
    return f"{root} needs {name}'s {split} split ({' or '.join(ways)}), got {got}"


def _download(name: str, split: str) -> Path:
    facts = FACTS.get(name)
    if facts is None or split == WHOLE:
        got = repr(name) if facts is None else f"the split {split}"
        raise ValueError(f"a download needs a name among {', '.join(FACTS)} and no split {WHOLE}, got {got}")
    from huggingface_hub import snapshot_download

    pattern = f"{facts.folder}/{facts.files[split]}-*.parquet"
    try:
        folder = snapshot_download(facts.repository, repo_type="dataset", allow_patterns=[pattern])
    except Exception as error:  # whatever its HTTP client raises, and that changes from release to release
        raise ValueError(f"cannot download {facts.repository}: {one_line(error)}") from error
    return Path(folder) / facts.folder
