"""``fastdef defend``: image files in, one JSON line an image out."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from fastdef.checkpoint import load
from fastdef.cli._shared import Device, Size, Source, check_device, image_shape
from fastdef.data import load_images
from fastdef.defense import ActiveDefense


def defend(
    model: Annotated[Path, typer.Argument(help="a model file with an active defense")],
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files, or folders of them")],
    size: Size = None,
    resize: Annotated[bool, typer.Option("--resize", help="scale images of another size")] = False,
    seed: Annotated[int | None, typer.Option(help="of the noise; drawn from the system if not given")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps an image may take")] = None,
    deadline: Annotated[float | None, typer.Option(min=0, help="seconds an image may take")] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the step; pays from some hundred images on")] = False,
    device: Device = "cpu",
    source: Source = None,
) -> None:
    """Classify image files behind the model's defense. Prints class, probability, steps and whether it converged.

    Class and probability are null where there is no answer: the deadline passed first, or the classifier gave NaN.
    """
    checkpoint = load(model, device=check_device(device), source=source)
    options = {} if max_steps is None else {"max_steps": max_steps}
    defense = ActiveDefense.from_checkpoint(checkpoint, seed=seed, compile=compile, **options)
    channels, *plane = image_shape(checkpoint, size)
    paths: list[Path] = []

    def arriving() -> Iterator[Tensor]:
        for path, image in load_images(images, channels=channels, size=(plane[0], plane[1]), resize=resize):
            paths.append(path)
            yield image

    for number, answer in enumerate(defense.stream(arriving(), deadline=deadline)):
        probability, label = answer.logits.exp().max(0)
        answered = math.isfinite(probability)  # not where its smoothing never began, or the classifier gave NaN
        line = {
            "file": str(paths[number]),
            "class": checkpoint.classes[int(label)] if answered else None,
            "probability": round(float(probability), 6) if answered else None,
            "steps": answer.steps,
            "converged": answer.converged,
        }
        sys.stdout.write(json.dumps(line) + "\n")
