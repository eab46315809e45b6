"""What a target does, in few numbers: a folder of work is gone on with for the target that answers as it did."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.data import Dataset
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.target import Target

_IMAGES, _NOISE = 4, 16 / 255  # that many as they are, and as many with noise
_PROJECTIONS = 4  # numbers that an answer is known by
_INFINITE = 1e4  # what an infinite answer counts as, so that projections stay numbers
_TOLERANCE = 1e-4  # other kernels round otherwise; another defense does more

Probe = dict[str, list[float]]


def probe(target: Target, surrogate: nn.Module | None, dataset: Dataset) -> Probe:
    """Answers, purified images and logits for fixed images and ids, each projected on few random vectors.

    What differs from one call to the next is not in it: of a target whose randomness hangs on nothing that can be set,
    the classifier alone is known.
    """
    images = _images(dataset)
    ids = noise_seeds(torch.arange(len(images)), range(1), SeedStream.PROBE)
    asked: dict[str, Callable[[], Tensor]] = {"answers": lambda: target.answer(images, ids).logits}
    purify, models = target.purify, {"classifier": target.classifier, "surrogate": surrogate}
    if purify is not None:
        asked["purified"] = lambda: purify(images, ids, None)
    for name, model in models.items():
        if model is not None:
            asked[name] = lambda model=model: _logits(model, images)  # type: ignore[misc]
    found = {name: (_known(ask), _known(ask)) for name, ask in asked.items()}
    return {name: first for name, (first, again) in found.items() if _close(first, again)}


def check_probe(found: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse to go on with the work on another target.

    Raises:
        ValueError: naming what differs.
    """
    for name in sorted({*found, *stored}):
        if name not in found or name not in stored or not _close(found[name], stored[name]):
            raise ValueError(
                f"--resume needs the target that the folder was made with: its {name} are others now, though weights "
                "and settings agree; evaluate into another folder"
            )


def _images(dataset: Dataset) -> Tensor:
    images = dataset.floats(0, min(_IMAGES, len(dataset)))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    return torch.cat([images, (images + _NOISE * (2 * noise - 1)).clamp(0, 1)])


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with frozen_eval(model):
        return model(images)


def _known(ask: Callable[[], Tensor]) -> list[float]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        values = ask().detach().flatten(1).double().cpu().nan_to_num(posinf=_INFINITE, neginf=-_INFINITE)
    vectors = torch.randn(values.shape[1], _PROJECTIONS, generator=torch.Generator().manual_seed(1)).double()
    return (values @ vectors / vectors.norm(dim=0)).flatten().tolist()


def _close(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and torch.allclose(
        torch.tensor(first), torch.tensor(second), rtol=_TOLERANCE, atol=_TOLERANCE
    )
