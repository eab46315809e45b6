"""The papers' own data, as JPEG: what came out beside what they print."""

from typing import Any

from tools.tables._results import headlined, read, table

_TRAININGS = {
    "standard": "WRN-10-2, 10 epochs, without the loss",
    "wrn-10-2-3-epochs": "WRN-10-2, 3 epochs",
    "smoothed": "WRN-10-2, 10 epochs",
    "wrn-10-4-10-epochs": "WRN-10-4, 10 epochs",
}
_COLUMNS = ("clean", "APGD-CE", "APGD-T", "FAB-T", "Square", "AutoAttack")


def cifar10_static() -> str:
    """Every training: its features, and its accuracy undefended and defended."""
    rows = []
    for name, said in _TRAININGS.items():
        found = read(f"cifar10/static-{name}-eps8.json")
        losses, alone, defended = found["feature_loss"], found["rows"]["no defense"], _one_loop(found)
        noise, attack = (100 * (losses[what] / losses["clean"] - 1) for what in ("clean, noised", "APGD-CE"))
        features = [f"{losses['clean']:.4f}", f"{noise:+.0f} %", f"{attack:+.0f} %"]
        rows.append([said, *features, _percent(alone["clean"]), *(_percent(defended[column]) for column in _COLUMNS)])
    heads = ["training", "clean L_F", "noise adds", "attack adds", "clean, undefended", "clean, defended"]
    return table([*heads, *_COLUMNS[1:]], rows)


def cifar10_paper() -> str:
    """Tables 1 and 2 of the paper, and the same of ours."""
    from reproduce.smoothing import PAPER, STANDARD_DEFENDED  # not with the pages' other tables: it imports torch

    report = read("cifar10/adaptive/report.json")
    best = headlined(report)
    rows = []
    for (eps, loops), paper in PAPER.items():
        found = read(f"cifar10/static-smoothed-eps{eps}.json")["rows"][f"outer_loops = {loops}"]
        adaptive = f"**{report['headline']:.1%}** of {best['count']}" if (eps, loops) == (8, 1) else ""
        rows.append([f"eps {eps}, {loops} outer loops", *_pairs(paper, found), adaptive])
    standard = _one_loop(read("cifar10/static-standard-eps8.json"))
    rows.append(["eps 8, standard training, 1 outer loop", *_pairs(STANDARD_DEFENDED, standard), ""])
    return table(["paper / ours, static, in %", *_COLUMNS, "ours, adaptive"], rows)


def cifar10_thresholds() -> str:
    """What lower thresholds of the same model leave."""
    rows = []
    for delta in ("calibrated", "0.0140", "0.0110", "0.0080"):
        found = read(f"cifar10/threshold-{delta}.json")["rows"]
        clean, attacked = found["clean, defended"], found["attacked, defended"]
        accuracies = (f"{row['value']:.1%}" for row in (clean, attacked))
        rows.append([delta, *accuracies, f"{clean['steps_median']}, {clean['steps_max']}", str(clean["unconverged"])])
    return table(["delta", "clean", "static: PGD-20", "steps on clean ones, median and most", "unconverged"], rows)


def cifar10_solvers() -> str:
    """Algorithm 1 and Polyak's steps on the same images."""
    found = read("cifar10/solvers.json")
    rows = []
    for name, solved in found["solvers"].items():
        clean, attacked = solved["clean"], solved["attacked"]
        accuracies = (f"{kind['accuracy']:.1%}" for kind in (clean, attacked))
        steps = f"{clean['steps_mean']:.1f}, {clean['steps_max']}"
        rows.append([name, *accuracies, steps, f"{clean['images_per_second']:.0f}"])
    heads = [f"WRN-10-2, {found['images']} images", "clean", "static: PGD-20"]
    return table([*heads, "steps on clean ones, mean and most", "images/s"], rows)


def _one_loop(found: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = found["rows"]["outer_loops = 1"]
    return row


def _pairs(paper: dict[str, float], ours: dict[str, Any]) -> list[str]:
    """The paper's figure and ours, column by column."""
    return [f"{paper[c]:.1f} / {_percent(ours[c])}" if c in paper else f"{_percent(ours[c])}" for c in _COLUMNS]


def _percent(accuracy: dict[str, Any]) -> str:
    return f"{100 * accuracy['value']:.1f}"
