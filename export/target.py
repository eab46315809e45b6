"""An export as what the adaptive evaluation attacks: something that answers, and gives nothing else away."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdef.evaluation.adaptive import Answers, Target
from fastdef.export.engine import load_engine
from fastdef.export.manifest import MANIFEST, read, sha256
from fastdef.export.opening import CPU
from fastdef.export.sessions import Provider
from fastdef.export.verify import open_classifier


def exported_target(folder: Path, *, providers: Sequence[Provider] = CPU, seed: int = 0) -> Target:
    """What ``fastdef export`` wrote, for the rows that need no gradients.

    Args:
        folder: of the export: with a defense its driven form answers, else ``classifier.onnx``.
        providers: see :func:`load_engine`.
        seed: of the defense's noise.

    Raises:
        ValueError: if the folder holds no whole export, or it cannot run here.
    """
    manifest = folder / MANIFEST
    defended = "defended.onnx" in read(manifest)["files"]
    identity = sha256(manifest.read_bytes())  # it holds the sha256 of every file
    if not defended:
        return _plain(folder, providers, identity)
    engine = load_engine(folder, providers=providers, driven=True)

    def answer(images: Tensor, ids: Tensor) -> Answers:
        result = engine(images.numpy(force=True), ids=ids.numpy(), seed=seed)
        steps, capped = torch.from_numpy(result.steps), ~torch.from_numpy(result.converged)
        return Answers(_logits(torch.from_numpy(result.probabilities), images), steps.long(), capped)

    return Target.opaque(answer, random=True, identity=identity)


def _plain(folder: Path, providers: Sequence[Provider], identity: str) -> Target:
    session = open_classifier(folder, providers)

    def answer(images: Tensor, ids: Tensor) -> Answers:
        (probabilities,) = session.run({session.inputs[0]: images.contiguous()})
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(_logits(probabilities, images), nothing, nothing.bool())

    return Target.opaque(answer, random=False, identity=identity)


def _logits(probabilities: Tensor, like: Tensor) -> Tensor:
    return probabilities.clamp_min(1e-38).log().to(like.device)
