"""Settings of work that goes on after an interrupt."""

import json
from typing import Any


def check_same(config: dict[str, Any], stored: dict[str, Any]) -> None:
    """Refuse to go on with other settings.

    Args:
        config: JSON-able settings of now.
        stored: those that the work began with.

    Raises:
        ValueError: naming the first that differs.
    """
    stored_flat, flat = _flat(stored), _flat(json.loads(json.dumps(config)))
    for name in sorted({*stored_flat, *flat}):
        if stored_flat.get(name) != flat.get(name):
            raise ValueError(
                f"--resume needs the settings the run began with: {name} was {stored_flat.get(name)}, "
                f"got {flat.get(name)}"
            )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
