"""What the models ask of their sizes. The upper limit is far above use, and keeps a sum of shapes within 64 bits."""

_LARGEST = 65536
_DEEPEST = 1000  # 6 * 166 + 4; a configuration from a stranger's file must not build modules without end


def check_sizes(*, where: str, **sizes: object) -> None:
    """Refuse anything but integers from 1 to 65536 (a bool is not one).

    Raises:
        ValueError: naming the first size that is not, and what came instead.
    """
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise ValueError(f"{where} needs an integer {name} from 1 to {_LARGEST}, got {value!r}")


def check_depth(depth: object, *, where: str) -> int:
    """The depth of a wide residual network itself, if it is one.

    Raises:
        ValueError: if it is not 6n + 4, or above 1000.
    """
    if type(depth) is not int or not 10 <= depth <= _DEEPEST or (depth - 4) % 6:
        raise ValueError(f"{where} needs a depth of 6n + 4 (10, 16, 22, ... {_DEEPEST}), got {depth!r}")
    return depth
