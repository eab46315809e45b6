"""How fast training, defense and exports are, and what a defended image costs."""

from tools.tables._results import called, read, table


def training() -> str:
    """A step of AFA's stage I."""
    contenders = read("training.json")["contenders"]
    rows = [
        [name, f"{found['images_per_second']:.1f}", f"{found['over_plain']:.1f}"] for name, found in contenders.items()
    ]
    return table(["", "images/s", "x plain"], rows)


def formats() -> str:
    """Latency of every format and engine by batch, on the shipped model."""
    return _formats("formats-shipped.json", "the shipped WRN-10-2")


def formats_wrn_16_4() -> str:
    """The same of a larger network."""
    return _formats("formats-wrn-16-4.json", "a WRN-16-4 of random weights, CIFAR-10 (JPEG)")


def _formats(file: str, title: str) -> str:
    found = read(file)["formats"]
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
    return table([*heads, "files, MiB", "load, s", "peak, MiB", "steps equal", "decisions equal"], rows)


def defense() -> str:
    """The waterfall from the naive loop."""
    contenders = read("defense-wrn-16-4.json")["contenders"]
    rows = [
        [
            name.replace("_", " "),
            f"{found['images_per_second']:.1f}",
            f"{found['ratio_to_naive']:.1f}",
            f"{found['useful_share']:.0%}",
        ]
        for name, found in contenders.items()
    ]
    return table(["WRN-16-4, 256 CIFAR-10 (JPEG) images, slots of 64", "images/s", "x naive", "useful steps"], rows)


def step() -> str:
    """A step against its own convolutions."""
    found = read("step.json")
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
    return table([title, "ms", "convolutions alone", "GFLOP/s", "in it: convolutions", "pointwise", "rest"], rows)


def classifier() -> str:
    """The classifier alone, in ms of a batch."""
    found = read("classifier.json")
    ways = list(next(iter(found["rows"].values())))
    rows = [[name, *(f"{row[way]['ms']:.0f}" for way in ways)] for name, row in found["rows"].items()]
    return table([f"{found['batch']} images, ms", *ways], rows)


def large_images() -> str:
    """Steps of photographs, beside plain autograd up to the same layer."""
    found = read("large-images.json")
    rows = [
        [f"{name}, {way}", f"{of['images_per_second']:.1f}", f"{of['mib']:.0f}", f"{of['mib_of_making']:.0f}"]
        for name, ways in found["networks"].items()
        for way, of in ways.items()
    ]
    size = found["size"]
    heads = [f"{found['batch']} images of {size} x {size}, one step each", "images/s", "peak MiB", "of them to make it"]
    return table(heads, rows)


def growth() -> str:
    """Cost of a step by batch, size and width."""
    axes = read("defense-wrn-16-4.json")["growth"]
    names = {"batch": "images in a batch", "size": "pixels a side", "width": "width of the network"}
    rows = [[names[axis], ", ".join(f"{at}: {ms:.2f}" for at, ms in found.items())] for axis, found in axes.items()]
    return table(["from WRN-10-2, 32 x 32, batch 64", "ms of a step, an image"], rows)


def price() -> str:
    """What an image costs without the defense, with it, and where an attack aims at its time."""
    lines = {line["name"]: line for line in read("adaptive-smoothing/report.json")["lines"]}
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
    return table(["the shipped WRN-10-2", "ms an image", "x undefended", "steps, median and most"], rows)


def solvers() -> str:
    """The paper's descent beside ours."""
    rows = []
    for name, found in read("solvers.json")["solvers"].items():
        clean, attacked = found["clean"], found["attacked"]
        steps = f"{clean['steps_mean']:.1f}, {clean['steps_max']}"
        rms = f"{clean['distance']['rms']:.3f}"
        accuracies = [f"{part['accuracy']:.1%}" for part in (clean, attacked)]
        rows.append([name, *accuracies, steps, rms, f"{clean['images_per_second']:.0f}"])
    return table(["solver", "clean", "attacked", "steps on clean ones, mean and most", "pixel rms", "images/s"], rows)


def solvers_adaptive() -> str:
    """The same under adaptive attacks, each solver by its own."""
    reports = {name: read(f"solvers-adaptive/{name}.json") for name in ("gradient", "polyak-0.005", "polyak-0.02")}
    lines = {name: {called(line): line for line in report["lines"]} for name, report in reports.items()}
    rows = []
    for key, line in lines["gradient"].items():
        if line["count"] == max(one["count"] for one in lines["gradient"].values()):
            rows.append([key.removeprefix("0 "), *(f"{lines[name][key]['mean']:.1%}" for name in reports)])
    judged = (f"{report['headline']:.1%}" for report in reports.values())
    count = reports["gradient"]["settings"]["images"]
    heads = [f"{count} images, the mean over the noise", *(name.replace("-", " ") for name in reports)]
    return table(heads, [*rows, ["the lowest, judged by other noise", *judged]])


def agreement() -> str:
    """How far single precision takes each program from the truth, and from the naive loop."""
    subjects = read("agreement.json")["subjects"]
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
    return table(["steps equal / images within 1e-5", *heads], rows)
