"""What the shipped models are worth: the demo, the evaluations, the sweep."""

import textwrap
from collections.abc import Iterable
from typing import Any

from tools.tables._results import headlined, read, table


def headline() -> str:
    """The README's number, with its price beside it."""
    demo, report = read("demo.json"), read("adaptive-smoothing/report.json")
    best = headlined(report)
    low, high = (100 * end for end in best["interval"])
    machine = demo["machine"]
    ours, plain, cost = (demo[key] for key in ("images_per_second", "images_per_second_naive", "times_undefended"))
    where = f"{machine['threads']} virtual cores of an {machine['name']}, float32, torch {machine['torch']}"
    text = (
        f"**{ours / plain:.0f}x the throughput of a plain PyTorch loop**: {ours:.0f} images/s against {plain:.1f} "
        f"(Active Defense on the shipped WRN-10-2, {where}). "
        f"The price: a defended image takes {cost:.0f}x the time of an undefended one, accuracy "
        f"on clean images falls from {demo['clean']:.1%} to {demo['defended_clean']:.1%}, adaptive attacks "
        f"at eps 8/255 leave **{best['mean']:.1%}** ({best['count']} images, 95 % interval {low:.0f} to {high:.0f} %)."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def demo() -> str:
    """What ``make demo`` prints of Active Defense."""
    found = read("demo.json")
    adaptive = found["adaptive"]
    best = headlined(adaptive)
    rows = [
        ["clean", f"{found['clean']:.1%}", f"{found['defended_clean']:.1%}"],
        ["static attack: PGD-20 at 8/255", f"{found['attacked']:.1%}", f"{found['defended_attacked']:.1%}"],
        [f"adaptive attack, one minute, {best['count']} images", "", f"{adaptive['headline']:.1%}"],
    ]
    return table([f"{found['images']} Fashion-MNIST test images", "undefended", "defended"], rows)


def adaptive() -> str:
    """The lowest line of each row, the paper's own adaptive attack, and AutoAttack's as published."""
    report = read("adaptive-smoothing/report.json")
    lines = report["lines"]

    def lowest(what: str, chosen: Iterable[dict[str, Any]]) -> list[str]:
        line = min(chosen, key=lambda line: line["mean"])
        low, high = (f"{100 * end:.0f}" for end in line["interval"])
        name = f"{line['row']}: {what.format(line['name'])}" if line["row"] else what
        mark = "**" if report["headline_of"] == f"{line['row']} {line['name']}" else ""
        percent = f"{mark}{line['mean']:.1%}{mark}"
        return [f"{mark}{name}{mark}", str(line["count"]), percent, f"{low} to {high}", f"{line['worst']:.1%}"]

    def of(row: int, name: str = "") -> list[dict[str, Any]]:
        return [line for line in lines if line["row"] == row and name in line["name"]]

    rows = [
        lowest("clean", of(0, "clean")),
        lowest("{}", of(1)),
        lowest("static: {}", of(2, "PGD on the model without")),
        lowest("AutoAttack on the same", of(2, "AutoAttack on the same")),
        lowest("{}", of(2, "surrogate")),
        lowest("{}", of(3)),
        lowest("{}", of(4)),
        lowest("the paper's adaptive attack, the lowest of ten lambdas", of(5, "max(L_F, delta)")),
        lowest("{}", of(5, "exit early")),
        *(lowest("{}", [line]) for line in of(6)),
        *(lowest("{}", [line]) for line in of(7)),
    ]
    heads = ["the shipped Active Defense, WRN-10-2", "images", "accuracy", "95 %", "worst of R"]
    return table(heads, rows)


def strengths() -> str:
    """Accuracy by eps, of the baselines and of AFA whole and in parts."""
    models = read("strengths.json")["models"]
    chosen = {
        "standard": ("standard", "model"),
        "PGD-AT at 8/255": ("pgd-at", "model"),
        "AFA on PGD-AT, whole": ("afa", "AFA"),
        "its branch 0 alone": ("afa", "branch 0 (W0 = 1)"),
        "its branch K - 1 alone": ("afa", "branch K-1 (W0 = 0)"),
        "a fixed even blend of the two": ("afa", "blend (W0 = 0.5)"),
    }
    eps = models["afa"]["eps"]
    rows = []
    for name, (model, part) in chosen.items():
        found = models[model]["rows"][part]
        accuracies = [entry["value"] for entry in found["by_eps"]] + [found["mean"]]
        rows.append([name, *(f"{100 * value:.1f}" for value in accuracies)])
    return table(["model", f"eps {eps[0]:g}", *(f"{value:g}" for value in eps[1:]), "mean"], rows)


def sweep() -> str:
    """The shipped model and its twins: the defense beside noise alone, and beside a blur of the same distance."""
    points = read("sweep-smoothing/points.json")
    chosen = {
        "shipped": {
            "undefended": "undefended",
            "noise alone": "noise",
            "a blur that changes as much": "blur",
            "**Active Defense**": "defended",
        },
        "shipped, standard": {
            "trained without the loss: noise alone": "noise",
            "trained without the loss: Active Defense": "defended",
        },
        "shipped, normalized": {
            "`--features normalized`: noise alone": "noise",
            "the same: Active Defense": "defended",
        },
    }
    rows = [
        [name, *(f"{points[point]['rows'][row][images]['mean']:.1%}" for images in ("clean", "PGD-20", "aware"))]
        for point, names in chosen.items()
        for name, row in names.items()
    ]
    return table(["WRN-10-2, all of Fashion-MNIST, 10 epochs", "clean", "static: PGD-20", "adaptive"], rows)
