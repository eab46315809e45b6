"""Names of classes, of which "Ankle boot", "ankle_boot" and "ankle-boot" are one."""

from collections.abc import Callable, Sequence


def numbering(classes: Sequence[str]) -> Callable[[str], int | None]:
    """What gives the number of a class by its name, however it is written, and None for the name of no class.

    Where two of the classes are told apart by how they are written alone, names are compared as they are.
    """
    keys = [_key(name) for name in classes]
    if len(set(keys)) < len(keys):
        return {name: number for number, name in enumerate(classes)}.get
    numbers = {key: number for number, key in enumerate(keys)}
    return lambda name: numbers.get(_key(name))


def _key(name: str) -> str:
    """Its letters and digits."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name
