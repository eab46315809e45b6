"""The whole way of a classifier or defense that a program holds, without a model file: evaluate, export, serve."""

import copy
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdef import runtime
from fastdef._validate import SERVER, check_installed
from fastdef.checkpoint import Checkpoint
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, Evaluation
from fastdef.evaluation import evaluate as evaluate_static
from fastdef.evaluation.adaptive import BUDGETS, AdaptiveResults, Target
from fastdef.evaluation.adaptive import evaluate_adaptive as run_adaptive
from fastdef.export.files import export_onnx as export_checkpoint
from fastdef.nn import architecture_of


def evaluate(subject: ActiveDefense | nn.Module, dataset: Dataset, *, attack: Attack | None = None) -> Evaluation:
    """Accuracy on clean and on attacked images, undefended and, for a defense, defended.

    The attack is computed on the undefended classifier: the weakest there is. See :func:`fastdef.evaluate_adaptive` for
    adaptive ones.

    Args:
        subject: a defense, or a classifier in eval mode.
        dataset: on the device of the model.
        attack: PGD-20 at 8/255 if not given.

    Raises:
        ValueError: as :func:`fastdef.evaluation.evaluate`.
    """
    if isinstance(subject, ActiveDefense):
        return evaluate_static(subject.model, dataset, defense=subject, attack=attack)
    return evaluate_static(subject, dataset, attack=attack)


def evaluate_adaptive(
    subject: ActiveDefense | nn.Module, dataset: Dataset, *, budget: str = "smoke", **options: Any
) -> AdaptiveResults:
    """What adaptive attacks leave, as ``fastdef evaluate-adaptive`` does.

    Args:
        subject: a defense, or a classifier that answers for itself.
        dataset: on the device of the model.
        budget: smoke, quick, standard or full.
        options: of :func:`fastdef.evaluation.adaptive.evaluate_adaptive`.

    Raises:
        ValueError: for another budget, or as that function.
    """
    if budget not in BUDGETS:
        raise ValueError(f"evaluate_adaptive needs a budget among {', '.join(BUDGETS)}, got {budget!r}")
    target = Target.defended(subject) if isinstance(subject, ActiveDefense) else Target.plain(subject)
    return run_adaptive(target, dataset, budget=BUDGETS[budget], **options)


def export_onnx(
    subject: ActiveDefense | nn.Module,
    folder: str | os.PathLike[str],
    *,
    shape: tuple[int, int, int],
    classes: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Path]:
    """Write ``classifier.onnx``, and for a defense ``defended.onnx``, ``noised.onnx`` and ``step.onnx``.

    Args:
        subject: a defense, or a classifier in eval mode.
        folder: made if it is not there.
        shape: (C, H, W) of an image.
        classes: their names; numbers if not given.
        dtype: of the networks inside.

    Returns:
        The files written, ``model.json`` last.

    Raises:
        ValueError: as :func:`fastdef.export.files.export_onnx`; for a solver of the caller's own.
    """
    return export_checkpoint(_checkpoint(subject, shape, classes), Path(folder), shape=shape, dtype=dtype)


def serve(
    defense: ActiveDefense,
    *,
    shape: tuple[int, int, int],
    classes: Sequence[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    queue_size: int = 256,
    grace: float = 35.0,
    background: str | None = None,
    resize: bool = False,
    page: bool | None = None,
) -> None:
    """Serve POST /classify, KServe v2, /docs, /health, /metrics and a page, as ``fastdef serve``, until told to stop.

    Who may ask a server twice should meet other noise: give the defense ``seed=None``.

    Args:
        defense: answers.
        shape: (C, H, W) of an image.
        classes: their names; numbers if not given.
        host: address to listen on.
        port: 0 takes one that is free.
        queue_size: images that may wait for a slot.
        grace: seconds for what was accepted, when told to stop.
        background: colour to put under images that are not opaque, such as "white"; they are refused without.
        resize: scale image files of another size.
        page: show the defense at ``/``, to whoever has the link that is logged; if not given, where ``host`` is a
            loopback address. What it shows helps an attacker.

    Raises:
        ValueError: for images that the model does not take, or a missing package.
    """
    check_installed(*SERVER, extra="serve", where="serve")
    from fastdef.serving import Page, Worker, application, make_token
    from fastdef.serving.run import Config, run

    names = _classes(defense.model, shape, classes)
    worker = Worker(defense, shape, queue_size=queue_size)
    worker.warm()
    token = make_token(page, host)
    shown = None if token is None else Page(token, defense)
    app = application(worker, classes=names, shape=shape, grace=grace, background=background, resize=resize, page=shown)
    config = Config(lambda: app, host=host, port=port, token=token, timeout_graceful_shutdown=math.ceil(grace) + 5)
    with suppress(KeyboardInterrupt):  # which the server raises again after it has ended in order
        run(config)


def _checkpoint(
    subject: ActiveDefense | nn.Module, shape: tuple[int, int, int], classes: Sequence[str] | None
) -> Checkpoint:
    defense = subject if isinstance(subject, ActiveDefense) else None
    config = None if defense is None else defense.config()
    model = subject if defense is None else defense.model
    names = _classes(model, shape, classes)
    model = model if all(t.device.type == "cpu" for t in model.state_dict().values()) else copy.deepcopy(model).cpu()
    return Checkpoint(model, _architecture(model, shape), names, config, {"shape": list(shape)})


def _architecture(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    try:
        return architecture_of(model)
    except ValueError:  # a network that ``build`` does not know: the files say what it is called
        return {"name": type(model).__name__, "in_channels": shape[0]}


def _classes(model: nn.Module, shape: tuple[int, int, int], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, or numbers; as many as the model tells apart."""
    runtime.check_model(model)  # in training mode the call would move its running statistics
    device, dtype = runtime.device_and_dtype(model)
    count = runtime.forward(model, torch.zeros((1, *shape), device=device, dtype=dtype)).shape[1]
    names = tuple(map(str, range(count))) if classes is None else tuple(classes)
    if len(names) != count:
        raise ValueError(f"a model of {count} classes needs as many names, got {len(names)}")
    return names
