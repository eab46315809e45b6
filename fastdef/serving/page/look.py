"""One image through the defense, with all that is hidden from who only asks for a class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdef.defense import ActiveDefense
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss
from fastdef.serving.page.pictures import png, roughness
from fastdef.serving.worker import Reply

_CLASSES = 10  # that are told, the likeliest
_STAGES = ("seen", "noised", "smoothed")


@torch.no_grad()
def describe_stages(defense: ActiveDefense, image: Tensor, reply: Reply, classes: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a (C, H, W) image and the reply to it, as JSON.

    Only reads the defense, so that the worker's thread may use it meanwhile.
    """
    noised = defense.noised(image[None], ids=torch.tensor([reply.id]))
    stages = torch.cat([image[None].to(noised), noised, reply.smoothed[None].to(noised)])
    features = prefix(defense.model, defense.layer)(stages)
    undefended = defense.model(stages[:1])[0].float().softmax(0).cpu()
    return {
        "stages": [
            {"name": name, "png": png(stage), "map": roughness(feature), "loss": loss}
            for name, stage, feature, loss in zip(
                _STAGES, stages, features, smoothing_loss(features).tolist(), strict=True
            )
        ],
        "delta": defense.delta,
        "steps": reply.steps,
        "converged": reply.converged,
        "expired": reply.expired,
        "seconds": reply.seconds,
        "answers": _answers(undefended, reply.probabilities, classes),
    }


def _answers(undefended: Tensor, defended: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest classes by either answer, in the order of the model's."""
    count = min(_CLASSES, len(classes))
    likeliest = torch.maximum(undefended, defended).topk(count).indices.sort().values.tolist()
    return [
        {"label": n, "class": classes[n], "undefended": float(undefended[n]), "defended": float(defended[n])}
        for n in likeliest
    ]
