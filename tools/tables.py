"""The tables and sentences of the pages, one function each, from the files in ``benchmarks/results``."""

import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CPU = ROOT / "benchmarks" / "results" / "cpu-2-cores"


def _read(name: str) -> Any:
    return json.loads((CPU / name).read_text())


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def adaptive() -> str:
    """The lowest line of each row, the paper's own adaptive attack, and AutoAttack's as published."""
    report = _read("adaptive-smoothing/report.json")
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
    return _table(heads, rows)


def strengths() -> str:
    """Accuracy by eps, of the baselines and of AFA whole and in parts."""
    models = _read("strengths.json")["models"]
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
    return _table(["model", f"eps {eps[0]:g}", *(f"{value:g}" for value in eps[1:]), "mean"], rows)


def training() -> str:
    """A step of AFA's stage I."""
    contenders = _read("training.json")["contenders"]
    rows = [
        [name, f"{found['images_per_second']:.1f}", f"{found['over_plain']:.1f}"] for name, found in contenders.items()
    ]
    return _table(["", "images/s", "x plain"], rows)


def formats() -> str:
    """Latency of every format and engine by batch, on the shipped model."""
    return _formats("formats-shipped.json", "the shipped WRN-10-2")


def formats_wrn_16_4() -> str:
    """The same of a larger network."""
    return _formats("formats-wrn-16-4.json", "a WRN-16-4 of random weights, CIFAR-10 (JPEG)")


def _formats(file: str, title: str) -> str:
    found = _read(file)["formats"]
    batches = list(next(row["batches"] for row in found.values()))
    rows = []
    for name, row in found.items():
        facts = [f"{row['file_bytes'] / 2**20:.1f}", f"{row['load_seconds']:.1f}"]
        if "refused" in row:
            rows.append([name, *("refused" for _ in batches), "", *facts, "", "", ""])
            continue
        spreads = [row["batches"][batch] for batch in batches]
        times = [f"{1e3 * spread['p50']:.0f} / {1e3 * spread['p99']:.0f}" for spread in spreads]
        rate = f"{spreads[-1]['images_per_second']:.1f}"
        agreement = [f"{row['steps_equal']:.0%}", f"{row['decisions_equal']:.0%}"]
        rows.append([name, *times, rate, *facts, f"{row['peak_bytes'] / 2**20:.0f}", *agreement])
    heads = [title, *(f"batch {batch}, ms, p50 / p99" for batch in batches), f"images/s at {batches[-1]}"]
    return _table([*heads, "files, MiB", "load, s", "peak, MiB", "steps equal", "decisions equal"], rows)


def defense() -> str:
    """The waterfall from the naive loop."""
    contenders = _read("defense-wrn-16-4.json")["contenders"]
    rows = [
        [
            name.replace("_", " "),
            f"{found['images_per_second']:.1f}",
            f"{found['ratio_to_naive']:.1f}",
            f"{found['useful_share']:.0%}",
        ]
        for name, found in contenders.items()
    ]
    return _table(["WRN-16-4, 256 CIFAR-10 (JPEG) images, slots of 64", "images/s", "x naive", "useful steps"], rows)


def step() -> str:
    """A step against its own convolutions."""
    found = _read("step.json")
    kinds = ("convolutions", "generated pointwise code", "the rest")
    rows = [
        [
            name,
            f"{row['step_ms']:.1f}",
            f"{row['convolutions_alone_ms']:.1f} ({row['share_of_floor']:.0%})",
            f"{row['step_gflops']:.0f} of {row['convolutions_alone_gflops']:.0f}",
            *(f"{row['profile_ms'].get(kind, 0):.1f}" for kind in kinds),
        ]
        for name, row in found["rows"].items()
    ]
    title = f"{found['architecture'].upper()}, {found['batch']} images"
    return _table([title, "ms", "convolutions alone", "GFLOP/s", "in it: convolutions", "pointwise", "rest"], rows)


def classifier() -> str:
    """The classifier alone, in ms of a batch."""
    found = _read("classifier.json")
    ways = list(next(iter(found["rows"].values())))
    rows = [[name, *(f"{row[way]['ms']:.0f}" for way in ways)] for name, row in found["rows"].items()]
    return _table([f"{found['batch']} images, ms", *ways], rows)


def large_images() -> str:
    """Steps of photographs, beside plain autograd up to the same layer."""
    found = _read("large-images.json")
    rows = [
        [f"{name}, {way}", f"{of['images_per_second']:.1f}", f"{of['mib']:.0f}", f"{of['mib_of_making']:.0f}"]
        for name, ways in found["networks"].items()
        for way, of in ways.items()
    ]
    size = found["size"]
    heads = [f"{found['batch']} images of {size} x {size}, one step each", "images/s", "peak MiB", "of them to make it"]
    return _table(heads, rows)


def growth() -> str:
    """Cost of a step by batch, size and width."""
    axes = _read("defense-wrn-16-4.json")["growth"]
    names = {"batch": "images in a batch", "size": "pixels a side", "width": "width of the network"}
    rows = [[names[axis], ", ".join(f"{at}: {ms:.2f}" for at, ms in found.items())] for axis, found in axes.items()]
    return _table(["from WRN-10-2, 32 x 32, batch 64", "ms of a step, an image"], rows)


def price() -> str:
    """What an image costs without the defense, with it, and where an attack aims at its time."""
    lines = {line["name"]: line for line in _read("adaptive-smoothing/report.json")["lines"]}
    chosen = {
        "undefended": "AutoAttack standard, without the defense",
        "defended, clean": "clean",
        "defended, attacked through 10 steps": "APGD-CE through 10 steps",
        "defended, attacked to be slow": "slow down",
    }
    plain = lines[chosen["undefended"]]["seconds_to_answer_an_image"]
    rows = []
    for name, line in chosen.items():
        seconds = lines[line]["seconds_to_answer_an_image"]
        steps = "" if name == "undefended" else f"{lines[line]['steps_median']}, {lines[line]['steps_most']}"
        rows.append([name, f"{1e3 * seconds:.2f}", f"{seconds / plain:.0f}", steps])
    return _table(["the shipped WRN-10-2", "ms an image", "x undefended", "steps, median and most"], rows)


def solvers() -> str:
    """The paper's descent beside ours."""
    rows = []
    for name, found in _read("solvers.json")["solvers"].items():
        clean, attacked = found["clean"], found["attacked"]
        steps = f"{clean['steps_mean']:.1f}, {clean['steps_max']}"
        rms = f"{clean['distance']['rms']:.3f}"
        accuracies = [f"{part['accuracy']:.1%}" for part in (clean, attacked)]
        rows.append([name, *accuracies, steps, rms, f"{clean['images_per_second']:.0f}"])
    return _table(["solver", "clean", "attacked", "steps on clean ones, mean and most", "pixel rms", "images/s"], rows)


def agreement() -> str:
    """How far single precision takes each program from the truth, and from the naive loop."""
    subjects = _read("agreement.json")["subjects"]
    chosen = {
        "the naive loop, batches of 64": "naive, batches of 64",
        "the naive loop, batches of 1": "naive, batches of 1",
        "ours, 64 slots": "ours, compiled, 64 slots",
        "ours, 1 slot": "ours, compiled, 1 slots",
        "ours in double precision": "ours, eager, 64 slots, float64",
    }
    rows = []
    for name, program in chosen.items():
        found = [subject["programs"][program][other] for subject in subjects.values() for other in ("truth", "naive")]
        rows.append([name, *(f"{one['steps_equal']:.0%} / {one['within']:.0%}" for one in found)])
    heads = [f"{name.split(',')[0]}, against the {other}" for name in subjects for other in ("truth", "naive loop")]
    return _table(["steps equal / images within 1e-5", *heads], rows)


def sweep() -> str:
    """The shipped model and its twins: the defense beside noise alone, and beside a blur of the same distance."""
    points = _read("sweep-smoothing/points.json")
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
    return _table(["WRN-10-2, all of Fashion-MNIST, 10 epochs", "clean", "static: PGD-20", "adaptive"], rows)


def headline() -> str:
    """The README's number, with its price beside it."""
    demo, report = _read("demo.json"), _read("adaptive-smoothing/report.json")
    best = next(line for line in report["lines"] if report["headline_of"] == f"{line['row']} {line['name']}")
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
    found = _read("demo.json")
    adaptive = found["adaptive"]
    best = next(line for line in adaptive["lines"] if adaptive["headline_of"] == f"{line['row']} {line['name']}")
    rows = [
        ["clean", f"{found['clean']:.1%}", f"{found['defended_clean']:.1%}"],
        ["static attack: PGD-20 at 8/255", f"{found['attacked']:.1%}", f"{found['defended_attacked']:.1%}"],
        [f"adaptive attack, one minute, {best['count']} images", "", f"{adaptive['headline']:.1%}"],
    ]
    return _table([f"{found['images']} Fashion-MNIST test images", "undefended", "defended"], rows)


def replicas() -> str:
    """What a server's doors take in, one beside the other."""
    found = _read("replicas.json")
    rows = [
        [
            f"`{door}`" if door.startswith("fastdef") else f"Ray Serve, {door}",
            f"{row['images_per_second']:.0f}",
            f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}",
            f"{row['alone_p50_ms']:.1f}",
            f"{row['refused_per_second']:.0f}",
        ]
        for door, row in found["doors"].items()
    ]
    heads = [f"{found['clients']} clients, one thread a process, {found['cores']} cores", "images/s", "ms, p50 / p99"]
    return _table([*heads, "ms, one client", "refused requests/s"], rows)


def replicas_on_paper() -> str:
    """What eight and a hundred devices would do, of the rates of one."""
    found = _read("replicas.json")
    doors, gpu = found["doors"], json.loads((CPU.parent / "h100" / "defense-wrn-28-10.json").read_text())
    proxy = max(doors[door]["refused_per_second"] for door in ("one replica", "two replicas"))
    core, device = doors["one replica"]["images_per_second"], gpu["contenders"]["slots"]["images_per_second"]
    text = (
        f"**Calculated on paper, not measured**, from these rates (load average {found['load_average']:.1f} before "
        f"they were taken) and {device:.0f} images/s of one {gpu['machine']['name']} (WRN-28-10). "
        f"Replicas add up: 8 of {core:.0f} images/s, as here, on cores of their own give {8 * core:.0f}. "
        f"A proxy is what does not grow with them: it passes {proxy:.0f} requests/s, clients on the same cores. "
        f"*8 GPUs in one machine* could take {8 * device:.0f} images/s, but of one image a request their proxy passes "
        f"{proxy:.0f}: it is full before the first GPU is. *8 machines of one GPU* have 8 proxies, which pass "
        f"{8 * proxy:.0f}. To fill a GPU, a request needs {device / proxy:.0f} images (`/v2`), or the work is for "
        f"`defend --out`, which has no proxy: {8 * device:.0f} images/s. "
        f"*At a hundred machines* the proxies still break first ({100 * proxy:.0f} requests/s). Next is what there is "
        f"one of: the disk that all read the model from (146 MB of a WRN-28-10, 15 GB for a hundred), the load "
        f"balancer, Ray's controller. The ledger is far from it: 20 messages/s, and {found['ledger_ms']:.0f} ms to add "
        f"up the metrics of a hundred replicas."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) + "\n"


_FUNCTIONS = (
    headline,
    demo,
    adaptive,
    strengths,
    training,
    formats,
    formats_wrn_16_4,
    defense,
    step,
    classifier,
    large_images,
    growth,
    price,
    solvers,
    agreement,
    sweep,
    replicas,
    replicas_on_paper,
)
TABLES: dict[str, Callable[[], str]] = {function.__name__: function for function in _FUNCTIONS}
