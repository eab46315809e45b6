"""A model card: Markdown with the hub's metadata, what the defense is worth first."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdef.checkpoint import Checkpoint
from fastdef.hub.describe import describe
from fastdef.hub.known_answers import known_answers

_EVALUATE = "fastdef evaluate-adaptive MODEL --data NAME --root FOLDER --budget standard --report report"


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model.

    Attributes:
        adaptive: ``report.json`` of ``fastdef evaluate-adaptive``.
        bench: what ``fastdef bench defense --json`` wrote.
    """

    adaptive: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None

    @classmethod
    def read(cls, report: Path | None, bench: Path | None) -> "Evidence":
        """From a report's folder or file, and a benchmark's file.

        Raises:
            ValueError: for a file that is neither.
        """
        file = report / "report.json" if report is not None and report.is_dir() else report
        return cls(_read(file, ("headline", "sentence", "settings")), _read(bench, ("machine", "contenders")))


def model_card(
    checkpoint: Checkpoint,
    *,
    name: str,
    shape: tuple[int, int, int],
    evidence: Evidence | None = None,
    license: str | None = None,
    repo_id: str = "USER/MODEL",
) -> str:
    """The card.

    Args:
        checkpoint: the model.
        name: its title.
        shape: (C, H, W) of an image.
        evidence: what was measured; without, the card says that nothing was.
        license: of the weights, by its identifier on the hub.
        repo_id: where it will lie.

    Raises:
        ValueError: for a model that does not take such images.
    """
    facts, evidence = describe(checkpoint), evidence or Evidence()
    parts = [
        f"---\n{_metadata(facts, name, evidence.adaptive, license)}\n---",
        f"# {name}",
        _worth(facts, evidence.adaptive),
        _usage(repo_id, shape),
        "## The model\n\n" + _table(_model_rows(facts, shape)),
        "## Training\n\n" + _training(facts["training"]),
        "## Cost\n\n" + _cost(facts, evidence.bench),
        "## Known answers\n\n" + _known(known_answers(checkpoint, shape), shape),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(facts: dict[str, Any], name: str, adaptive: dict[str, Any] | None, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    tags = ["image-classification", "adversarial-robustness"]
    tags += [tag for tag, there in (("active-defense", facts["defense"]), ("afa", facts["afa"])) if there]
    data = (facts["training"] or {}).get("data")
    card = ModelCardData(
        library_name="fastdef",
        pipeline_tag="image-classification",
        tags=tags,
        license=license,
        datasets=[data] if data else None,
        model_name=name,
        eval_results=None if adaptive is None else _results(adaptive),
    )
    return str(card.to_yaml())


def _results(adaptive: dict[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    settings = adaptive["settings"]
    data = str(settings["data"])
    result = EvalResult(
        task_type="image-classification",
        dataset_type=data.split()[0],
        dataset_name=data,
        metric_type="accuracy",
        metric_name=f"accuracy under adaptive attacks, eps {settings['eps'] * 255:g}/255, {settings['images']} images",
        metric_value=round(float(adaptive["headline"]), 4),
    )
    return [result]


def _worth(facts: dict[str, Any], adaptive: dict[str, Any] | None) -> str:
    if adaptive is None:
        return f"**Not evaluated against adaptive attacks.** Nothing is known of its robustness before\n`{_EVALUATE}`."
    settings = adaptive["settings"]
    figure = f"**{adaptive['headline']:.1%} of the images under adaptive attacks.** {adaptive['sentence']}"
    failed = (
        "" if adaptive.get("passed") else " **Checks of the evaluation on itself failed: do not trust its figures.**"
    )
    return (
        f"{figure}{failed}\n\n({settings['data']}, budget {settings['budget']['name']}, {settings['images']} images.)"
    )


def _usage(repo_id: str, shape: tuple[int, int, int]) -> str:
    return f"""```python
import torch, fastdef

checkpoint = fastdef.load("hf://{repo_id}")
images = torch.rand(2, {", ".join(map(str, shape))})  # in [0, 1]; normalization is inside
model = checkpoint.model if checkpoint.defense is None else fastdef.ActiveDefense.from_checkpoint(checkpoint, seed=None)
print([checkpoint.classes[int(row.argmax())] for row in model(images)])
```"""


def _model_rows(facts: dict[str, Any], shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    rows = [
        ("architecture", facts["architecture"]),
        ("parameters", f"{facts['parameters']:,}"),
        ("images", " x ".join(map(str, shape)) + ", in [0, 1]"),
        ("classes", ", ".join(facts["classes"][:20]) + (", ..." if len(facts["classes"]) > 20 else "")),
    ]
    dictionaries = ((name, facts[name]) for name in ("normalization", "defense", "afa") if facts[name])
    return rows + [
        (name, ", ".join(f"{key} {_short(one)}" for key, one in found.items())) for name, found in dictionaries
    ]


def _training(training: dict[str, Any] | None) -> str:
    if training is None:
        return "The file does not say."
    figures = training["figures"] or {}
    given = {name: value for name, value in training.items() if name != "figures" and value is not None}
    rows = [(name.replace("_", " "), _short(value)) for name, value in given.items()]
    return _table([*rows, *((f"last epoch: {name}", _short(value)) for name, value in figures.items())])


def _cost(facts: dict[str, Any], bench: dict[str, Any] | None) -> str:
    if bench is None:
        how = "`fastdef bench defense --model MODEL --json bench.json`"
        return f"Not measured ({how})." if facts["defense"] else "That of one forward pass."
    machine = bench["machine"]
    rows = [(name, f"{one['images_per_second']:.1f} images/s") for name, one in bench["contenders"].items()]
    return _table(rows) + f"\n{machine['name']}, {machine['threads']} threads, torch {machine['torch']}."


def _known(answers: list[dict[str, Any]], shape: tuple[int, int, int]) -> str:
    lines = [
        f"On `fastdef.hub.known_images({shape})`, with seed 0, on a CPU in float32; another machine rounds otherwise:",
        "",
        "| image | class | probability | steps |",
        "|---|---|---|---|",
    ]
    for number, one in enumerate(answers):
        lines.append(f"| {number} | {_cell(one['class'])} | {one['probability']:.4f} | {_short(one['steps'])} |")
    return "\n".join(lines)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in rows)


def _cell(text: str) -> str:
    """Text of a file in a table: it neither ends the cell nor begins markup of its own."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\|`*_[]<>#" else letter for letter in plain)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _read(file: Path | None, needed: tuple[str, ...]) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} needs to be a JSON file: {error}") from error
    if not isinstance(content, dict) or not set(needed) <= content.keys():
        raise ValueError(f"{file} needs {', '.join(needed)}, which it lacks: it is of another command")
    return content
