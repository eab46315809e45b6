"""``fastdef demo``: the shipped classifier attacked, defended and timed on shipped images."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastdef.cli._shared import Json
from fastdef.demo import Demo, draw, run
from fastdef.io import write_json


def demo(
    json_file: Json = None,
    figure: Annotated[Path | None, typer.Option(help="write a PNG of images and feature maps here")] = None,
    limit: Annotated[int, typer.Option(min=64, max=512, help="images")] = 512,
) -> None:
    """Attack, defend and time shipped classifiers on shipped Fashion-MNIST test images. Trains nothing."""
    console = Console()
    results = run(count=limit, step=lambda what: console.print(f"[dim]{what}[/dim]"))
    figures = results.to_json()
    machine = figures["machine"]
    console.print(_table(results))
    console.print(
        f"Naive loop {figures['images_per_second_naive']:.1f} images/s, fastdef {figures['images_per_second']:.1f} "
        f"images/s ({figures['images_per_second'] / figures['images_per_second_naive']:.1f}x), same images, "
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}. "
        f"A defended image takes {figures['times_undefended']:.0f}x the time of an undefended one."
    )
    console.print(
        f"The second line's attack is static. {results.adaptive.sentence} More iterations and more "
        "attacks get further: `fastdef evaluate-adaptive`, and docs/results.md on what this is worth.",
        highlight=False,
    )
    console.print(_afa_table(results))
    if figure is not None:
        draw(results, figure)
    if json_file is not None:
        write_json(json_file, figures)


def _table(results: Demo) -> Table:
    figures = results.to_json()
    table = Table(title=f"{figures['images']} Fashion-MNIST test images")
    for column in ("images", "undefended", "defended", "steps, median", "converged"):
        table.add_column(column, justify="left" if column == "images" else "right")
    names = (("clean", "clean", "defended_clean"), ("PGD-20, eps 8/255", "attacked", "defended_attacked"))
    for (name, plain, defended), answers in zip(names, results.defended, strict=True):
        table.add_row(
            name,
            f"{figures[plain]:.1%}",
            f"{figures[defended]:.1%}",
            str(int(answers.steps.median())),
            f"{int(answers.converged.sum())}/{len(answers.converged)}",
        )
    headline = results.adaptive.headline
    if headline is not None and headline.score is not None:
        score = headline.score
        name = f"adaptive attacks, {score.count} images"
        table.add_row(
            name,
            "",
            f"{score.judgement:.1%}",
            str(score.steps_median),
            f"{score.count * score.noise_samples - score.capped}/{score.count * score.noise_samples}",
        )
    return table


def _afa_table(results: Demo) -> Table:
    afa = results.afa
    (accuracies,) = afa.rows.values()
    table = Table(title=f"AFA, {accuracies[0].count} images, white-box PGD-{afa.steps}")
    table.add_column("")
    for eps in afa.strengths:
        table.add_column(f"eps {eps * 255:g}/255", justify="right")
    table.add_row("accuracy", *(f"{accuracy.value:.1%}" for accuracy in accuracies))
    table.add_row("mean W1", *(f"{shift.w1[0]:.3f}" for shift in afa.shifts if shift.w1))
    return table
