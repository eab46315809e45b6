"""The demo's picture: images and one feature map, attacked, noised and smoothed (the paper's Fig. 4)."""

from pathlib import Path

import torch
from torch import Tensor

from fastdef.demo.run import Demo
from fastdef.io import atomic_write
from fastdef.nn import prefix

_SHOWN = 3


def draw(demo: Demo, path: Path) -> None:
    """Write the picture as PNG: for some images, a column each of image and feature map, clean and attacked.

    Rows are the image as it came, with the defense's noise, and after smoothing; under each image stands the class
    that the undefended classifier gives it.

    Raises:
        ValueError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.6, 4.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 4 * _SHOWN)
    for number, index in enumerate(_examples(demo)):
        for attacked in (False, True):
            stages = _stages(demo, index, attacked)
            features = _feature_maps(demo, stages)
            for row, (image, feature) in enumerate(zip(stages, features, strict=True)):
                left, right = axes[row, 4 * number + 2 * attacked], axes[row, 4 * number + 2 * attacked + 1]
                left.imshow(image[0].numpy(force=True), cmap="gray", vmin=0, vmax=1)
                left.set_xlabel(_class(demo, image), fontsize=7)
                right.imshow(feature.numpy(force=True), cmap="viridis")
                if row == 0:
                    left.set_title("attacked" if attacked else "clean", fontsize=8)
                    right.set_title("features", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row, name in enumerate(("as it came", "noised", "smoothed")):
        axes[row, 0].set_ylabel(name, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _examples(demo: Demo) -> list[int]:
    """Images that the attack turned, first of all different classes."""
    clean, attacked = (logits.argmax(1) for logits in demo.undefended)
    turned = ((clean == demo.labels) & (attacked != demo.labels)).nonzero().flatten().tolist()
    firsts: dict[int, int] = {}
    for index in [*turned, *range(len(demo.labels))]:
        firsts.setdefault(int(demo.labels[index]), index)
    return list(firsts.values())[:_SHOWN]


def _stages(demo: Demo, index: int, attacked: bool) -> list[Tensor]:
    image = (demo.attacked if attacked else demo.images)[index]
    noised = demo.defense.noised(image[None], ids=torch.tensor([index]))[0]
    return [image, noised, demo.defended[attacked].images[index]]


@torch.no_grad()
def _feature_maps(demo: Demo, stages: list[Tensor]) -> Tensor:
    """The channel that differs most between the images, of each image."""
    features = prefix(demo.defense.model, demo.defense.layer)(torch.stack(stages))
    return features[:, features.var(dim=(0, 2, 3)).argmax()]


@torch.no_grad()
def _class(demo: Demo, image: Tensor) -> str:
    return demo.classes[int(demo.defense.model(image[None]).argmax())]
