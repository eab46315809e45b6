"""AFA on the papers' own data, as JPEG: beside the paper, its generator in several ways, and both defenses in one."""

from typing import Any

from tools.tables._results import headlined, read, table

_TRAININGS = {  # model: what it is
    "standard": "standard",
    "pgd-at": "PGD-AT",
    "pgd-at-afa": "PGD-AT, AFA, K = 3",
    "pgd-at-afa-2": "PGD-AT, AFA, K = 2",
    "trades": "TRADES",
    "trades-afa": "TRADES, AFA, K = 3",
}
_PARTS = {  # of a model of AFA
    "branch 0 (W0 = 1)": "its branch 0 alone",
    "branch K-1 (W0 = 0)": "its branch K - 1 alone",
    "blend (W0 = 0.5)": "a fixed even blend of the two",
}
_STRONGEST = ("FGSM", "C&W margin, PGD-20", "adaptive PGD, lowest of seven")
_MODELS = {
    "afa": "AFA alone",
    "undefended": "AFA with the smoothing loss",
    "both": "the same with Active Defense",
    "polyak": "the same by Polyak's steps",
}


def cifar10_afa() -> str:
    """Accuracy by eps, of the baselines and of AFA on each, whole and in parts."""
    from reproduce.afa import PAPER  # not with the pages' other tables: it imports torch

    models = read("cifar10/afa/strengths.json")["models"]
    eps = models["pgd-at"]["eps"]
    rows = []
    for name, said in _TRAININGS.items():
        found = models[name]["rows"]
        paper = PAPER.get(name, (None,) * (len(eps) + 1))
        rows.append([said, *_pairs(paper, _accuracies(next(iter(found.values()))))])
        if name == "pgd-at-afa":
            rows += [[part, *_pairs((None,) * 6, _accuracies(found[key]))] for key, part in _PARTS.items()]
    return table(["paper / ours, in %", f"eps {eps[0]:g}", *(f"{value:g}" for value in eps[1:]), "mean"], rows)


def cifar10_strongest() -> str:
    """The other attacks at eps 8, and the mean of W1 by eps."""
    from reproduce.afa import BLACK_BOX, STRONGEST

    models = read("cifar10/afa/strengths.json")["models"]
    rows = []
    for name, said in _TRAININGS.items():
        found = models[name]["strongest"]
        ours = [100 * found[attack]["value"] if attack in found else None for attack in _STRONGEST]
        ours.append(_black_box(name) if name in BLACK_BOX else None)
        papers = (*STRONGEST.get(name, (None,) * 3), BLACK_BOX.get(name))
        rows.append([said, *_pairs(papers, ours)])
    heads = ["eps 8, paper / ours, in %", "FGSM", "C&W", "adaptive, on W0", "images of another network"]
    return table(heads, rows)


def cifar10_generators() -> str:
    """Stage II in several ways, on one stage I."""
    found = read("cifar10/afa/generators.json")["variants"]
    rows = []
    for name, one in found.items():
        accuracies = (one["accuracy"]["0"], one["accuracy"]["8"], one["attack_on_w0"])
        weights = (f"{one['w1'][eps]:.3f}" for eps in ("0", "2", "8"))
        rows.append([name, *weights, f"{one['auc']:.2f}", *(f"{100 * value['value']:.1f}" for value in accuracies)])
    heads = ["stage II", "W1 at eps 0", "2", "8", "tells 8 from 0 (AUC)", "clean", "PGD-20 at 8", "attack on W0"]
    return table(heads, rows)


def cifar10_both() -> str:
    """Does Active Defense add anything to a network of AFA?"""
    rows = []
    for name, said in _MODELS.items():
        report = read(f"cifar10/both/{name}.json")
        clean = next(line for line in report["lines"] if (line["row"], line["name"]) == (0, "clean"))
        best = headlined(report)
        low, high = (f"{100 * end:.0f}" for end in best["interval"])
        percents = (f"{clean['mean']:.1%}", f"**{report['headline']:.1%}**", f"{low} to {high}")
        rows.append([said, str(best["count"]), *percents, report["headline_of"]])
    return table(["WRN-10-2, K = 3", "images", "clean", "adaptive", "95 %", "by"], rows)


def _accuracies(row: dict[str, Any]) -> list[float]:
    """In %, by eps, and their mean."""
    return [100 * value for value in (*(one["value"] for one in row["by_eps"]), row["mean"])]


def _pairs(papers: tuple[float | None, ...], ours: list[float | None] | list[float]) -> list[str]:
    """The paper's figure and ours, or what there is."""
    pairs = zip(papers, ours, strict=True)
    return [" / ".join(f"{value:.1f}" for value in pair if value is not None) for pair in pairs]


def _black_box(name: str) -> float:
    report = read(f"cifar10/afa/black-box-{name}.json")
    line = next(line for line in report["lines"] if line["name"] == "PGD on the surrogate")
    return float(100 * line["mean"])
