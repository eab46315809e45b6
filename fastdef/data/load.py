"""Data sets by name."""

import os
from pathlib import Path

from fastdef.data._facts import FACTS, Facts
from fastdef.data._idx import find_idx, read_idx
from fastdef.data._parquet import find_parquet, read_parquet
from fastdef.data._tree import find_tree, read_tree
from fastdef.data.dataset import Dataset

SPLITS = ("train", "test", "fit", "validation")


def load_dataset(
    name: str, split: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Read a split of a data set into memory.

    What ``root`` holds decides how it is read: parquet files in the hub's schema, Fashion-MNIST's IDX files, or images
    by class (root/train/<class>/*.png), for which any name will do.

    Args:
        name: cifar10, cifar100, svhn, tiny-imagenet, fashion-mnist; or your own, for images by class.
        split: "train" or "test"; or of train "fit", all but the last tenth, and "validation", the last tenth.
        root: folder that holds the data.
        download: fetch it from the Hugging Face hub instead; the only thing here that uses the network.

    Raises:
        ValueError: for an unknown name or split, or files that are missing, damaged, or of another schema.
    """
    if split not in SPLITS:
        raise ValueError(f"load_dataset needs a split among {', '.join(SPLITS)}, got {split!r}")
    if root is None and not download:
        raise ValueError(f"load_dataset needs root, a folder that holds {name}, or download=True, got neither")
    facts = FACTS.get(name)
    if facts is None and (root is None or find_tree(Path(root), "train") is None):
        raise ValueError(
            f"load_dataset needs a name among {', '.join(FACTS)}, or a root of images by class (train/<class>/*.png), "
            f"got {name!r}"
        )
    stored = "test" if split == "test" else "train"
    folder = _download(facts, stored) if root is None and facts is not None else Path(root or "")
    dataset = _read(name, facts, folder, stored)
    return {"fit": dataset.fit, "validation": dataset.validation}.get(split, lambda: dataset)()


def _read(name: str, facts: Facts | None, root: Path, split: str) -> Dataset:
    if not root.is_dir():
        raise ValueError(f"load_dataset needs a folder that holds {name}, got {root}")
    if facts is not None and (files := find_parquet(root, facts, split)):
        return Dataset(*read_parquet(files, facts), facts.classes, name, split, facts.flip)
    if name == "fashion-mnist" and facts is not None and (pair := find_idx(root, split)):
        return Dataset(*read_idx(pair), facts.classes, name, split, facts.flip)
    if folder := find_tree(root, split):
        return Dataset(*read_tree(folder), name, split, facts is None or facts.flip)
    wanted = f"{facts.files[split]}-*.parquet, " if facts is not None else ""
    raise ValueError(
        f"{root} needs {name}'s {split} split ({wanted}IDX files, or {split}/<class>/*.png), got none of it"
    )


def _download(facts: Facts, split: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    pattern = f"{facts.folder}/{facts.files[split]}-*.parquet"
    try:
        folder = snapshot_download(facts.repository, repo_type="dataset", allow_patterns=[pattern])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"cannot download {facts.repository}: {' '.join(str(error).split())[:200]}") from error
    return Path(folder) / facts.folder
