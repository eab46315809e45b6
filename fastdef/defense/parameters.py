"""What the defense asks of its parameters and of what stands beside the images, and images that are none."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor

from fastdef._validate import check_batch, check_count, check_images, check_positive, valid_images

OnInvalid = Literal["raise", "flag"]
T = TypeVar("T")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Fixed(Generic[T]):
    """A parameter that the steps hold once they are compiled: read under its name, kept under ``_name``.

    Raises:
        AttributeError: when it is set, since the steps would go on with what they were made of.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "Fixed[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else getattr(instance, f"_{self._name}")

    def __set__(self, instance: object, value: T) -> None:
        kind, name = type(instance).__name__, self._name
        new = f"a new {kind} with {name}={value!r:.80}"
        raise AttributeError(f"{kind}.{name} is fixed in the compiled steps; make {new}")


def check_parameters(numbers: Mapping[str, float], counts: Mapping[str, int], dtype: object) -> None:
    """Refuse parameters of a defense, by name, that are out of their range, or another dtype than the loop can have.

    Raises:
        ValueError: naming the first one and what came instead.
    """
    for name, number in numbers.items():
        check_positive(number, name=name, where="ActiveDefense")
    for name, count in counts.items():
        check_count(count, name=name, where="ActiveDefense")
    if dtype not in (*_DTYPES, "auto"):
        raise ValueError(f"ActiveDefense needs dtype float32, float16, bfloat16 or auto, got {dtype}")


def check_config(described: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    """The parameters, out of ``names``, that a model file has for an active defense.

    Raises:
        ValueError: if the file describes another defense or none, or has a parameter of another name.
    """
    config = dict(described or {})
    if config.pop("kind", None) != "active" or not set(config) <= set(names):
        needed = f"a model file with an active defense of {', '.join(names)}"
        raise ValueError(f"ActiveDefense needs {needed}, got {described}")
    return config


def check_seed(seed: int) -> int:
    """The seed of the noise.

    Raises:
        ValueError: for anything but a whole number from 0 up that 64 bits hold.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise ValueError(f"ActiveDefense needs a seed that is whole, from 0 up and below 2**64, got {seed!r:.80}")
    return int(seed)


def check_id(id: int) -> int:
    """The id of one image.

    Raises:
        ValueError: for anything but a whole number from 0 up that an int64 holds.
    """
    try:
        number = operator.index(id)  # NumPy's numbers and the elements of a tensor are whole numbers too
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"ActiveDefense needs ids that are whole, from 0 up and below 2**63, got {id!r:.80}")
    return number


def check_ids(ids: Tensor | None, count: int) -> Tensor:
    """The ids, or 0 to N - 1 where none are given.

    Raises:
        ValueError: for anything but (N,) int64 ids from 0 up.
    """
    return torch.arange(count) if ids is None else _whole(ids, count, least=0, name="ids")


def check_budgets(budgets: Tensor | None, count: int, most: int) -> list[int]:
    """The steps each image may take: its budget, and never more than ``most``.

    Raises:
        ValueError: for anything but (N,) int64 budgets from 1 up.
    """
    if budgets is None:
        return [most] * count
    return [min(most, budget) for budget in _whole(budgets, count, least=1, name="budgets").tolist()]


def check_noise(noise: Tensor, images: Tensor) -> Tensor:
    """Noise to add to images, where they are and as precise.

    Raises:
        ValueError: for anything but a tensor of the images' shape.
    """
    if not isinstance(noise, Tensor) or noise.shape != images.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"ActiveDefense.smooth needs noise of the images' shape {tuple(images.shape)}, got {got}")
    return noise.to(images)


def images_of(images: Iterable[Tensor], on_invalid: OnInvalid, *, where: str) -> Iterator[tuple[Tensor, bool]]:
    """Each image of a stream as it is pulled, black where it is none, and whether it is one.

    Raises:
        ValueError: at anything but a (C, H, W) tensor of the first one's shape, such as a pair of it and its label; as
            ``sanitize_images``.
    """
    shape = None
    for image in images:
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"{where} needs each image as a tensor of shape (C, H, W), got {got}")
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(f"{where} needs images of one shape, got {tuple(image.shape)} after {tuple(shape)}")
        (checked,), (good,) = sanitize_images(image[None], on_invalid, where=where)
        yield checked, good


def sanitize_images(images: Tensor, on_invalid: OnInvalid, *, where: str) -> tuple[Tensor, list[bool]]:
    """The images in [0, 1], black where they are not finite or further out than a rounding, and which of them were.

    Raises:
        ValueError: for what is no batch of images; with "raise" for such values too; for another ``on_invalid``.
    """
    if on_invalid == "raise":
        return check_images(images, where=where), [True] * len(images)
    if on_invalid != "flag":
        raise ValueError(f"{where} needs on_invalid as 'raise' or 'flag', got {on_invalid!r}")
    check_batch(images, where=where)
    valid = valid_images(images)
    return torch.where(valid[:, None, None, None], images, 0).clamp(max=1), valid.tolist()


def _whole(values: Tensor, count: int, *, least: int, name: str) -> Tensor:
    needed = f"ActiveDefense needs a tensor of ({count},) int64 {name} from {least} up"
    if not isinstance(values, Tensor):
        raise ValueError(f"{needed}, got {type(values).__name__}")
    if values.dtype != torch.int64 or values.shape != (count,):
        raise ValueError(f"{needed}, got {tuple(values.shape)} {values.dtype}")
    if int(values.min()) < least:
        raise ValueError(f"{needed}, got {int(values.min())}")
    return values
