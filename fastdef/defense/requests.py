"""What a defense is asked: images one by one, checked, from a batch or from a stream."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from fastdef.defense.parameters import OnInvalid, check_budgets, check_id, check_ids, check_image, sanitize_images

Place = Callable[[Tensor], Tensor]  # puts images where the model is


@dataclass(frozen=True)
class Request:
    """One image to defend.

    Attributes:
        image: (C, H, W) float32 in [0, 1], on the model's device.
        id: what its noise hangs on, with the seed and the outer loop.
        limit: steps that each outer loop may take.
        deadline: ``time.monotonic()`` at which its smoothing ends, done or not.
        valid: False for a stand-in of what was no image.
    """

    image: Tensor
    id: int
    limit: int
    deadline: float | None = None
    valid: bool = True


def of_batch(
    images: Tensor,
    place: Place,
    *,
    ids: Tensor | None,
    budgets: Tensor | None,
    most: int,
    deadline: float | None,
    on_invalid: OnInvalid,
) -> Iterator[Request]:
    """(N, C, H, W) images, all at once.

    Raises:
        ValueError: at once, for what ``ActiveDefense.defend`` refuses.
    """
    images, valid = sanitize_images(images, on_invalid, where="ActiveDefense")
    ids = check_ids(ids, len(images))
    limits = check_budgets(budgets, len(images), most)
    until = _after(deadline)
    return (
        Request(image, id, limit if good else 0, until, good)
        for image, id, limit, good in zip(place(images), ids.tolist(), limits, valid, strict=True)
    )


def of_stream(
    images: Iterable[Tensor],
    place: Place,
    *,
    ids: Iterable[int] | None,
    most: int,
    deadline: float | None,
    on_invalid: OnInvalid,
) -> Iterator[Request]:
    """(C, H, W) images as they are pulled, each with a deadline of its own.

    Raises:
        ValueError: at an image that ``ActiveDefense.stream`` refuses.
    """
    where = "ActiveDefense.stream"
    numbers = count() if ids is None else iter(ids)
    shape = None
    for image in images:
        check_image(image, where=where)
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(f"{where} needs images of one shape, got {tuple(image.shape)} after {tuple(shape)}")
        id = next(numbers, None)
        if id is None:
            raise ValueError(f"{where} needs an id for every image, got more images than ids")
        (checked,), (good,) = sanitize_images(image[None], on_invalid, where=where)
        yield Request(place(checked), check_id(id), most if good else 0, _after(deadline), good)


def _after(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds
