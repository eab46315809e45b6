"""``fastdef train smoothing``: standard training with the feature smoothing loss."""

from typing import Annotated

import typer

from fastdef.cli._data import Background, Data, Download, ImageSize, Limit, Order, Reading, Root
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, check_device
from fastdef.cli._training import (
    Architecture,
    Augment,
    BatchSize,
    Bf16,
    Clip,
    Compile,
    Normalize,
    Out,
    Resume,
    Schedule,
    Seed,
    TrainingBar,
    WeightDecay,
    build_model,
    parse_milestones,
)
from fastdef.io import write_json
from fastdef.nn import first_group, normalize_features, normalized
from fastdef.training import TrainConfig, train_smoothing

_FEATURES = {"raw": (0.02, 80.0), "normalized": (0.4, 1.5)}  # delta and beta: L_F has other units


def smoothing(
    data: Data,
    architecture: Architecture,
    out: Out,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    batch_size: BatchSize = 128,
    lr: Annotated[float, typer.Option(help="largest learning rate; 0.2 has collapsed the features")] = 0.05,
    weight_decay: WeightDecay = 5e-4,
    schedule: Schedule = "onecycle",
    milestones: Annotated[str, typer.Option(help="epochs at which a step schedule falls")] = "75,90",
    clip: Clip = 0.0,
    ema: Annotated[float, typer.Option(min=0, help="decay of the weights' average, 0 for none")] = 0.0,
    layer: Annotated[
        str | None, typer.Option(help="the layer whose output is smoothed; the first group if not given")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="raw, as the paper has them, or normalized by channel, so that shrinking them does not lower L_F"
        ),
    ] = "raw",
    delta: Annotated[
        float | None,
        typer.Option(help="bound of the smoothing loss, the paper's 0.02 if not given, 0.4 if normalized; 0 for none"),
    ] = None,
    sigma: Annotated[float, typer.Option(help="noise of the defense")] = 0.075,
    beta: Annotated[
        float | None, typer.Option(help="step size of the defense, the paper's 80 if not given, 1.5 if normalized")
    ] = None,
    ratio: Annotated[float, typer.Option(help="the defense's threshold over the clean L_F")] = 0.92,
    normalize: Normalize = True,
    augment: Augment = True,
    limit: Limit = None,
    compile: Compile = False,
    bf16: Bf16 = None,
    device: Device = DEFAULT_DEVICE,
    seed: Seed = 0,
    resume: Resume = False,
    json_file: Json = None,
) -> None:
    """Standard training with the feature smoothing loss, then a calibrated Active Defense."""
    if features not in _FEATURES:
        raise ValueError(f"--features needs one of {', '.join(_FEATURES)}, got {features!r}")
    usual_delta, usual_beta = _FEATURES[features]
    place = check_device(device)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=parse_milestones(milestones),
        clip=clip,
        ema=ema,
        bf16=place.type == "cuda" if bf16 is None else bf16,
        compile=compile,
        seed=seed,
    )
    dataset, validation = Reading(root, download, background, class_order, size).load_training(data, limit=limit)
    dataset, validation = dataset.to(place), validation.to(place)
    model = build_model(architecture, dataset, normalize=normalize, seed=seed, device=place)
    if features == "normalized":
        layer = first_group(model) if layer is None else layer
        normalize_features(model, layer=layer)
        layer = normalized(layer)
    with TrainingBar(epochs, max(1, len(dataset) // batch_size), out) as bar:
        figures = train_smoothing(
            model,
            dataset,
            validation,
            config,
            out,
            layer=layer,
            delta=usual_delta if delta is None else delta,
            sigma=sigma,
            beta=usual_beta if beta is None else beta,
            ratio=ratio,
            augment=augment,
            resume=resume,
            progress=bar.update,
        )
    typer.echo(bar.outcome(figures))
    if json_file is not None:
        write_json(json_file, figures)
