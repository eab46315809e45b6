"""An export without fastdef: python examples/run_onnx_alone.py deployed. Needs numpy and onnxruntime.

An engine that computes something else than PyTorch did is refused: it has to give the known answers of model.json.
"""

import argparse
import base64
import json
import secrets
from pathlib import Path

import numpy as np
import onnxruntime


def limbs(numbers: list[int]) -> np.ndarray:
    """64-bit numbers as the file takes them: four int32 of 16 bits each, the lowest first."""
    return np.array(numbers, np.int64).view(np.uint16).reshape(-1, 4).astype(np.int32)


class Defended:
    """The defended classifier of a folder that ``fastdef export`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "model.json").read_text())
        self.session = onnxruntime.InferenceSession(folder / "defended.onnx", providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: np.ndarray, ids: list[int], seed: int) -> dict[str, np.ndarray]:
        """(N, C, H, W) float32 images in [0, 1] to probabilities, steps, converged, loss, smoothed."""
        feed = {"images": images, "ids": limbs(ids), "seed": limbs([seed] * len(ids))}
        return dict(zip(self.names, self.session.run(None, feed), strict=True))

    def check(self) -> np.ndarray:
        """Compare with the known answers; their images."""
        known = self.manifest["known_answers"]
        pixels = np.frombuffer(base64.b64decode(known["images"]), np.uint8).astype(np.float32) / 255
        images = pixels.reshape(len(known["ids"]), *self.manifest["image"]["shape"])
        result = self(images, known["ids"], known["seed"])
        if (result["steps"] != known["steps"]).any():
            raise SystemExit(f"this engine takes {result['steps'].tolist()} steps, PyTorch {known['steps']}")
        if np.abs(result["probabilities"] - known["probabilities"]).max() > 1e-3:
            raise SystemExit("this engine gives other probabilities than PyTorch")
        return images


def main() -> None:
    """Check an export, and classify its images again with noise that nobody can predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    defended = Defended(parser.parse_args().folder)

    images = defended.check()
    ids = [secrets.randbits(62) for _ in images]
    result = defended(images, ids, secrets.randbits(62))
    for probabilities, steps in zip(result["probabilities"], result["steps"], strict=True):
        print(f"{defended.manifest['classes'][probabilities.argmax()]}, {steps} steps")


if __name__ == "__main__":
    main()
