"""When does Active Defense recover attacked images? The trainings of the sweep.

One factor at a time around a centre: the training bound delta, depth, width, length of training, and the features that
L_F is measured on (raw, the paper's; or normalized by channel, where shrinking does not help). Then the interactions
that the question is about: what a deeper, a wider, or a longer trained network recovers *without* the smoothing loss
(each has a twin with delta = 0), and whether normalized features need a longer training.
On Fashion-MNIST there is a second group: the shipped model, which saw all images, its twin, and it on normalized
features. Test-time factors (sigma, threshold, step) need no training; they are varied on three of the models.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.stages import Stage
from fastdef.assets import ASSETS


@dataclass(frozen=True)
class Training:
    """One model.

    Attributes:
        name: its own in the sweep.
        architecture: as ``fastdef train`` has it.
        delta: bound of the smoothing loss; 0 is standard training.
        features: "raw" or "normalized".
        epochs: times through the data.
        batch_size: images a step.
        images: of the training set; None for all.
        twin: the same training without the smoothing loss, to be read beside it.
        variants: whether the test-time factors are varied on it.
        file: a model that is there already and is not trained.
    """

    name: str
    architecture: str
    delta: float = 0.02
    features: str = "raw"
    epochs: int = 6
    batch_size: int = 128
    images: int | None = None
    twin: str | None = None
    variants: bool = False
    file: Path | None = None

    @property
    def slug(self) -> str:
        """The name as part of a file's."""
        return self.name.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class Plan:
    """What is run, and where.

    Attributes:
        trainings: in the order they run.
        limit: test images, attacked on the undefended model.
        aware: how many of them are attacked through the defense.
        options: of every training, beside what the training says.
    """

    trainings: tuple[Training, ...]
    limit: int
    aware: int
    options: tuple[str, ...]


def around(
    centre: Training,
    *,
    deltas: tuple[float, ...],
    normalized: tuple[float, ...],
    architectures: dict[str, str],
    epochs: int,
) -> tuple[Training, ...]:
    """The grid around a centre.

    Args:
        centre: smoothed, on raw features.
        deltas: others than the centre's.
        normalized: deltas on normalized features; the middle one is the centre of the interactions.
        architectures: others than the centre's, by what to call them.
        epochs: of the longer trainings.
    """
    middle = normalized[len(normalized) // 2]
    found = [replace(centre, variants=True, twin="standard"), replace(centre, name="standard", delta=0)]
    found += [replace(centre, name=f"delta {delta:g}", delta=delta, twin="standard") for delta in deltas]
    for delta in normalized:
        name = f"normalized, delta {delta:g}"
        one = replace(centre, name=name, delta=delta, features="normalized", twin="standard", variants=delta == middle)
        found.append(one)
    longer = replace(centre, name=f"{epochs} epochs", epochs=epochs, twin=f"{epochs} epochs, standard")
    found += [longer, replace(longer, name=longer.twin, delta=0, twin=None)]
    found.append(replace(longer, name=f"{epochs} epochs, normalized", delta=middle, features="normalized"))
    for name, architecture in architectures.items():
        other = replace(centre, name=name, architecture=architecture, twin=f"{name}, standard")
        found += [other, replace(other, name=other.twin, delta=0, twin=None)]
    return tuple(found)


def shipped(epochs: int = 10) -> tuple[Training, ...]:
    """The model that the package ships (WRN-10-2, all of Fashion-MNIST), its standard twin, and it with the option."""
    twin = Training("shipped, standard", "wrn-10-2", delta=0, epochs=epochs)
    file = ASSETS / "smoothing.safetensors"
    model = replace(twin, name="shipped", delta=0.02, twin=twin.name, variants=True, file=file)
    option = replace(model, name="shipped, normalized", delta=0.4, features="normalized", file=None)
    return model, twin, option


PRESETS = {
    "cpu": Plan(
        around(
            Training("centre", "wrn-10-2", images=5000, batch_size=32),
            deltas=(0.005, 0.08),
            normalized=(0.6, 0.4, 0.2),
            architectures={"width 1": "wrn-10-1", "depth 16": "wrn-16-2"},
            epochs=16,
        ),
        limit=256,
        aware=48,
        options=("--bf16",),
    ),
    "gpu": Plan(
        around(
            Training("centre", "wrn-28-10", epochs=15),
            deltas=(0.005, 0.08),
            normalized=(0.6, 0.4, 0.2),
            architectures={"depth 16": "wrn-16-10", "width 4": "wrn-28-4"},
            epochs=45,
        ),
        limit=1000,
        aware=256,
        options=("--bf16", "--compile"),
    ),
}


def stages(plan: Plan, out: Path, *, data: list[str], device: str) -> list[Stage]:
    """Each training, and its measurement right after it."""
    found: list[Stage] = []
    for training in plan.trainings:
        folder = out / "models" / training.slug
        model = training.file or folder / "model.safetensors"
        if training.file is None:
            command = ["train", "smoothing", *data, "--architecture", training.architecture, "--out", str(folder)]
            command += ["--delta", f"{training.delta:g}", "--features", training.features]
            command += ["--epochs", str(training.epochs), "--device", device, *plan.options]
            command += ["--batch-size", str(training.batch_size)]
            command += [] if training.images is None else ["--limit", str(training.images)]
            found.append(Stage(f"train-{training.slug}", command, folder / "state.safetensors"))
        command = [str(model), *data, "--limit", str(plan.limit), "--aware", str(plan.aware), "--device", device]
        command += ["--variants"] if training.variants else []
        command += ["--out", str(point(out, training))]
        found.append(Stage(f"measure-{training.slug}", command, module="reproduce.sweeps.measure"))
    return found


def point(out: Path, training: Training) -> Path:
    """The file of what was measured on a training's model."""
    return out / "points" / f"{training.slug}.json"
