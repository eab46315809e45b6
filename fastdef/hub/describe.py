"""What a model file holds, as plain facts."""

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import nn

from fastdef.checkpoint import Checkpoint

_NAMES = {"wide_resnet": "wrn-{depth}-{width}", "dm_wide_resnet": "dm-wrn-{depth}-{width}"}


def describe(checkpoint: Checkpoint, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The facts of a model, ready for JSON.

    Args:
        checkpoint: from :func:`fastdef.load`.
        path: of its file, whose size and sha256 are then among the facts.

    Returns:
        ``file``, ``bytes``, ``sha256`` (with a path), ``architecture``, ``parameters``, ``shape`` (C, H, W or None),
        ``normalization``, ``classes``, ``defense``, ``afa`` and ``training``; what there is not is None.
    """
    described = checkpoint.architecture
    training = checkpoint.training or {}
    return {
        **({} if path is None else _file(Path(path))),
        "architecture": architecture_name(described),
        "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "shape": training.get("shape"),
        "normalization": _normalization(checkpoint.model),
        "classes": list(checkpoint.classes),
        "defense": checkpoint.defense,
        "afa": _afa(described),
        "training": _training(training),
    }


def architecture_name(described: dict[str, Any]) -> str:
    """``wrn-10-2`` of what ``build`` takes; the source of what it does not."""
    if "source" in described:
        return str(described["source"])
    name = str(described["name"])
    if name in _NAMES:
        return _NAMES[name].format(**described)
    return "-".join(filter(None, (name.replace("_", ""), str(described.get("depth", "")))))


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"file": str(path), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _normalization(model: nn.Module) -> dict[str, list[float]] | None:
    from fastdef.nn import Normalize

    layer = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if layer is None:
        return None
    return {name: [round(float(value), 6) for value in getattr(layer, name).flatten()] for name in ("mean", "std")}


def _afa(described: dict[str, Any]) -> dict[str, Any] | None:
    conversions = {one["name"]: one for one in described.get("conversions", [])}
    if "multi_bn" not in conversions:
        return None
    placement = conversions["afa"]["placement"] if "afa" in conversions else None
    return {"branches": conversions["multi_bn"]["branches"], "placement": placement, "stage": 2 if placement else 1}


def _training(training: dict[str, Any]) -> dict[str, Any] | None:
    config = training.get("config")
    if not isinstance(config, dict):
        return None
    parts = (config.get("data", {}), config.get("method", {}), config.get("hyper", {}))
    data, method, hyper = (part if isinstance(part, dict) else {} for part in parts)
    return {
        "method": method.get("name"),
        "data": data.get("name"),
        "images": data.get("images"),
        "epochs": training.get("epochs"),
        "batch_size": hyper.get("batch_size"),
        "lr": hyper.get("lr"),
        "figures": training.get("figures"),
    }
