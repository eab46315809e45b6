"""The packages that exports are written with and run by, which are extras."""

from importlib.util import find_spec


def check_installed(*names: str) -> None:
    """Refuse to begin what would fail in its midst.

    Raises:
        ValueError: naming the first package that is missing, and the extra that brings it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"an export needs {name}: pip install 'fastdef[export]'")
