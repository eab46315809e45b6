"""``fastdef train afa``: adversarial training with branches, and the plain methods it is held against."""

from dataclasses import replace
from typing import Annotated

import typer
from torch import nn

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
from fastdef.losses import PGDAT, RECIPES
from fastdef.nn import architecture_of, check_architecture
from fastdef.training import STRENGTHS, TrainConfig, train_branches, train_fusing
from fastdef.training.state import FILE

STANDARD = "standard"


def afa(
    data: Data,
    architecture: Architecture,
    out: Out,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    method: Annotated[str, typer.Option(help="pgd-at, trades, mart, iat; or standard, with one branch")] = "pgd-at",
    branches: Annotated[int, typer.Option(help="2, 3, 5 or 9; 1: the method alone, at 8/255, without stage II")] = 5,
    attack_steps: Annotated[
        int | None, typer.Option(min=1, help="of the attack trained with, 3 cost a third; 10 if not given, 7 for iat")
    ] = None,
    placement: Annotated[str, typer.Option(help="of the weight generator: shared or layerwise")] = "shared",
    supervision: Annotated[
        float, typer.Option(min=0, help="weight of a term that tells the generator the strengths; the paper has none")
    ] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="of stage I")] = 100,
    fusing_epochs: Annotated[int, typer.Option(min=1, help="of stage II")] = 20,
    batch_size: BatchSize = 128,
    lr: Annotated[float, typer.Option(help="of stage I; the paper has 0.01 for SVHN")] = 0.1,
    fusing_lr: Annotated[float, typer.Option(help="of stage II; the paper has 0.001 for SVHN")] = 0.01,
    weight_decay: WeightDecay = 5e-4,
    schedule: Schedule = "step",
    milestones: Annotated[str, typer.Option(help="epochs at which stage I's step schedule falls")] = "75,90",
    fusing_milestones: Annotated[str, typer.Option(help="and stage II's")] = "10",
    clip: Clip = 0.0,
    sequential: Annotated[bool, typer.Option("--sequential", help="Algorithm 1 as written, branch by branch")] = False,
    layer: Annotated[
        str | None, typer.Option(help="the layer smoothed, where --delta is given; the first group if not given")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="bound of a feature smoothing loss added to stage I")] = None,
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
    """AFA: a branch for each attack strength (stage I), then the generator that mixes the outermost (stage II)."""
    place = check_device(device)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        nesterov=False,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=parse_milestones(milestones),
        clip=clip,
        bf16=place.type == "cuda" if bf16 is None else bf16,
        compile=compile,
        seed=seed,
    )
    fusing = replace(config, epochs=fusing_epochs, lr=fusing_lr, milestones=parse_milestones(fusing_milestones))
    recipe, strengths = _recipe(method, branches, attack_steps)
    dataset, validation = Reading(root, download, background, class_order, size).load_training(data, limit=limit)
    dataset, validation = dataset.to(place), validation.to(place)
    model = build_model(architecture, dataset, normalize=normalize, seed=seed, device=place)
    folder = out if branches == 1 else out / "stage1"
    resume_fusing = branches > 1 and (out / FILE).is_file()
    if resume_fusing and not resume:  # before the hours of stage I
        raise ValueError(f"{out} holds a run already; resume it, or give another folder")
    _check_conversions(model, branches, placement)
    steps = max(1, len(dataset) // batch_size)
    with TrainingBar(epochs, steps, folder) as bar:
        figures = train_branches(
            model,
            dataset,
            validation,
            config,
            folder,
            recipe=recipe,
            strengths=strengths,
            sequential=sequential,
            smoothed=None if delta is None else {"layer": layer, "delta": delta},
            augment=augment,
            resume=resume,
            progress=bar.update,
        )
    if branches > 1:
        typer.echo(bar.outcome(figures), err=True)
        with TrainingBar(fusing_epochs, steps, out) as bar:
            figures = train_fusing(
                model,
                dataset,
                validation,
                fusing,
                out,
                strengths=strengths,
                attack_steps=attack_steps or PGDAT.steps,
                supervision=supervision,
                placement=placement,
                augment=augment,
                resume=resume and resume_fusing,
                progress=bar.update,
            )
    typer.echo(bar.outcome(figures))
    if json_file is not None:
        write_json(json_file, figures)


def _check_conversions(model: nn.Module, branches: int, placement: str) -> None:
    """Whether stage II will take the model, asked before the hours of stage I; nothing is allocated."""
    if branches > 1:
        lifted, fused = {"name": "multi_bn", "branches": branches}, {"name": "afa", "placement": placement}
        check_architecture({**architecture_of(model), "conversions": [lifted, fused]})


def _recipe(method: str, branches: int, attack_steps: int | None) -> tuple[PGDAT, list[float]]:
    """The adversarial loss, and the strengths of the branches in pixel units."""
    if branches not in STRENGTHS:
        raise ValueError(f"--branches needs one of {', '.join(map(str, STRENGTHS))}, got {branches}")
    if method == STANDARD:
        if branches != 1 or attack_steps is not None:
            told = f"--branches {branches}" + ("" if attack_steps is None else f" and --attack-steps {attack_steps}")
            raise ValueError(f"--method standard attacks nothing: it needs --branches 1 alone, got {told}")
        return PGDAT(), [0.0]
    if method not in RECIPES:
        raise ValueError(f"--method needs one of {', '.join([*RECIPES, STANDARD])}, got {method!r}")
    recipe = RECIPES[method]()
    return recipe.with_steps(attack_steps or recipe.steps), [xi / 255 for xi in STRENGTHS[branches]]
