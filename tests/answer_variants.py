"""Ways to ask for the same answers, or for the same trained weights: what ``test_same_answer.py`` holds together.

    python tests/answer_variants.py FILE

writes what ``ELSEWHERE`` names into a file, for another process to be compared.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdef.assets import ASSETS
from fastdef.checkpoint import Checkpoint, load
from fastdef.data import Dataset, load_dataset
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from fastdef.training import TrainConfig, train_smoothing

COUNT = 12
Outcome = dict[str, Tensor]
Query = Callable[[Callable[[Tensor, Tensor], Outcome], Tensor], Outcome]


@cache
def subject(name: str) -> tuple[Checkpoint, Tensor]:
    """A model with its defense, and images: the shipped ones, or small ones with random weights."""
    if name == "shipped":
        checkpoint = load(ASSETS / "smoothing.safetensors")
        checkpoint.defense["max_steps"] = 40
        return checkpoint, load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, COUNT)
    images = torch.rand(COUNT, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=40, outer_loops=2, compile=False)
    defense.calibrate(images)
    return Checkpoint(model, architecture_of(model), ("a", "b", "c"), defense.config(), None), images


def defended(name: str, ask: "Query | None" = None, *, threads: int = 1, device: str = "cpu", **options) -> Outcome:
    """By PyTorch: on eight slots, uncompiled, in float32, unless the options say otherwise."""
    checkpoint, images = subject(name)
    options = {"slots": 8, "seed": 3, "compile": False, **options}
    checkpoint.model.to(device)
    defense = ActiveDefense.from_checkpoint(checkpoint, **options)

    def call(images: Tensor, ids: Tensor) -> Outcome:
        found = defense.defend(images, ids=ids)
        return {key: getattr(found, key).cpu() for key in ("images", "logits", "steps", "loss")}

    with on_threads(threads):
        outcome = (ask or together)(call, images)
    checkpoint.model.to("cpu")
    return outcome


def streamed(name: str, **options) -> Outcome:
    """As :func:`defended`, one image after the other."""
    checkpoint, images = subject(name)
    defense = ActiveDefense.from_checkpoint(checkpoint, slots=8, seed=3, compile=False, **options)
    with on_threads(1):
        found = list(defense.stream(iter(images)))
    return {
        "images": torch.stack([answer.image for answer in found]),
        "logits": torch.stack([answer.logits for answer in found]),
        "steps": torch.tensor([answer.steps for answer in found]),
        "loss": torch.tensor([answer.loss for answer in found]),
    }


def together(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
    return call(images, torch.arange(COUNT))


def again(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
    together(call, images)
    return together(call, images)


def alone(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
    return in_batches(1)(call, images)


def in_batches(size: int) -> Query:
    def ask(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
        ids = torch.arange(COUNT)
        parts = [call(*part) for part in zip(images.split(size), ids.split(size), strict=True)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    return ask


def backwards(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
    return {key: value.flip(0) for key, value in call(images.flip(0), torch.arange(COUNT).flip(0)).items()}


def in_company(call: Callable[[Tensor, Tensor], Outcome], images: Tensor) -> Outcome:
    """Each image between two that are others."""
    mixed = torch.stack([1 - images, images, images.flip(3)], dim=1).flatten(0, 1)
    ids = torch.stack([torch.arange(COUNT) + shift for shift in (100, 0, 200)], dim=1).flatten()
    return {key: value[1::3] for key, value in call(mixed, ids).items()}


@cache
def export(name: str) -> Path:
    """The small subject's export."""
    from fastdef.export.files import export_onnx

    checkpoint, images = subject(name)
    folder = Path(tempfile.mkdtemp())
    export_onnx(checkpoint, folder, shape=tuple(images.shape[1:]))
    return folder


def exported(ask: "Query | None" = None, *, threads: int = 1, **options) -> Outcome:
    """By ONNX Runtime, in one file or driven."""
    from fastdef.export.engine import load_engine

    _, images = subject("small")

    def call(images: Tensor, ids: Tensor) -> Outcome:
        found = engine(np.ascontiguousarray(images.numpy()), ids=np.ascontiguousarray(ids.numpy()), seed=3)
        names = {"images": "smoothed", "logits": "probabilities", "steps": "steps", "loss": "loss"}
        outcome = {key: torch.from_numpy(getattr(found, theirs)) for key, theirs in names.items()}
        return {**outcome, "logits": outcome["logits"].log()}

    with on_threads(threads), load_engine(export("small"), **options) as engine:
        return (ask or together)(call, images)


class Interrupt(Exception):
    pass


def trained(*, threads: int = 1, interrupted: bool = False, **hyper) -> Outcome:
    """Weights after two epochs on stripes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (64,), generator=generator)
    wave = (torch.arange(12) % 4 < 2) * 200
    clean = torch.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    images = (clean + torch.randint(0, 55, (64, 12, 12), generator=generator)).to(torch.uint8)[:, None]
    data = Dataset(images, labels, ("rows", "columns"), "stripes", "fit", flip=True)
    settings = TrainConfig(**{"epochs": 2, "batch_size": 16, "lr": 0.05, **hyper})

    def run(folder: Path, *, resume: bool, progress: Callable[..., None]) -> None:
        torch.manual_seed(0)
        model = build(parse_architecture("wrn-10-1", num_classes=2, in_channels=1))
        train_smoothing(model, data, data, settings, folder, delta=0.02, resume=resume, progress=progress)

    def stop(epoch: int, steps: int, figures: object) -> None:
        if epoch == 1:
            raise Interrupt

    with tempfile.TemporaryDirectory() as folder, on_threads(threads):
        if interrupted:
            with suppress(Interrupt):
                run(Path(folder), resume=False, progress=stop)
        run(Path(folder), resume=interrupted, progress=lambda *_: None)
        return dict(load(Path(folder) / "model.safetensors").model.state_dict())


@contextmanager
def on_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ELSEWHERE: dict[str, Callable[[], Outcome]] = {
    "float32": partial(defended, "small"),
    "float32, shipped": partial(defended, "shipped"),
    "bfloat16": partial(defended, "small", dtype=torch.bfloat16),
    "float16": partial(defended, "small", dtype=torch.float16),
    "one file": exported,
    "driven": partial(exported, driven=True),
    "training": trained,
}

if __name__ == "__main__":
    from safetensors.torch import save_file

    content = {f"{name}/{key}": value for name, way in ELSEWHERE.items() for key, value in way().items()}
    save_file({key: value.contiguous() for key, value in content.items()}, sys.argv[1])
