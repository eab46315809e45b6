"""What the models ask of their sizes. The upper limit is far above use, and keeps a sum of shapes within 64 bits."""

_LARGEST = 65536


def check_sizes(*, where: str, **sizes: object) -> None:
    """Refuse anything but integers from 1 to 65536 (a bool is not one).

    Raises:
        ValueError: naming the first size that is not, and what came instead.
    """
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise ValueError(f"{where} needs an integer {name} from 1 to {_LARGEST}, got {value!r}")
