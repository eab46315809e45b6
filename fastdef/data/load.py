"""Data sets by name."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from fastdef.data._errors import one_line, readable
from fastdef.data._facts import FACTS, Facts
from fastdef.data._idx import find_idx, read_idx
from fastdef.data._parquet import find_parquet, read_parquet
from fastdef.data._tree import WHOLE, find_tree, read_tree
from fastdef.data.dataset import Dataset

SPLITS = ("train", "test", "fit", "validation", WHOLE)


def load_dataset(
    name: str, split: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Read a split of a data set into memory.

    What ``root`` holds decides how it is read: parquet files in the hub's schema, Fashion-MNIST's IDX files, or images
    by class (root/train/<class>/*.png), for which any name will do. Where files come class by class, images are taken
    from all classes in turn, so that the first ones and the last tenth hold them all.

    Args:
        name: cifar10, cifar100, svhn, tiny-imagenet, fashion-mnist; or your own, for images by class.
        split: "train" or "test"; or of train "fit", all but the last tenth, and "validation", the last tenth; "all" for
            images by class that are not split (root/<class>/*.png).
        root: folder that holds the data.
        download: fetch it from the Hugging Face hub instead; the only thing here that uses the network.

    Raises:
        ValueError: for an unknown name or split, or files that are missing, damaged, or of another schema.
    """
    if split not in SPLITS:
        raise ValueError(f"load_dataset needs a split among {', '.join(SPLITS)}, got {split!r}")
    if root is None and not download:
        raise ValueError(f"load_dataset needs root, a folder that holds {name}, or download=True, got neither")
    stored = split if split in ("test", WHOLE) else "train"
    folder = _download(name, stored) if root is None else Path(root)
    with readable(folder):
        if not folder.is_dir():
            raise ValueError(f"load_dataset needs root to be a folder that holds {name}, got {folder}")
        dataset = _in_turn(_read(name, folder, stored))
    return {"fit": dataset.fit, "validation": dataset.validation}.get(split, lambda: dataset)()


def _read(name: str, root: Path, split: str) -> Dataset:
    facts = FACTS.get(name)
    if facts is not None and split != WHOLE:
        if files := find_parquet(root, facts, split):
            return Dataset(*read_parquet(files, facts), name, split, facts.flip)
        if name == "fashion-mnist" and (pair := find_idx(root, split)):
            return Dataset(*read_idx(pair, facts), facts.classes, name, split, facts.flip)
    if folder := find_tree(root, split):
        mode, known, flip = (None, (), True) if facts is None else (facts.mode, facts.classes, facts.flip)
        return Dataset(*read_tree(folder, mode=mode, known=known), name, split, flip)
    raise ValueError(_missing(name, facts, root, split))


def _missing(name: str, facts: Facts | None, root: Path, split: str) -> str:
    splits = [there for there in ("train", "test", WHOLE) if find_tree(root, there)]
    if facts is None and not splits:
        named = ", ".join(FACTS)
        return (
            f"load_dataset needs a name among {named}, or a root of images by class (train/<class>/*.png), got {name!r}"
        )
    ways = ["<class>/*.png" if split == WHOLE else f"{split}/<class>/*.png"]
    if facts is not None and split != WHOLE:
        ways = [f"{facts.files[split]}-*.parquet", *(["IDX files"] if name == "fashion-mnist" else []), *ways]
    got = f"images by class of the split {' and '.join(splits)}" if splits else "none of it"
    return f"{root} needs {name}'s {split} split ({' or '.join(ways)}), got {got}"


def _in_turn(dataset: Dataset) -> Dataset:
    """Mix classes that are stored one after another, as in a folder a class.

    The first images, and the last tenth, then hold every class in its share. Other orders stay as they are.
    """
    labels = dataset.labels
    if bool((labels[1:] < labels[:-1]).any()):
        return dataset
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    place = (torch.arange(len(labels)) - first[labels] + 0.5) / counts[labels].double()
    order = place.argsort(stable=True)
    return replace(dataset, images=dataset.images[order], labels=labels[order])


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
