"""A loop that runs only the images that still need steps answers as the loop that runs them all."""

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_compress import Compress

from fastdef.export.arithmetic_noise import limbs
from fastdef.export.compaction import CHUNK, compact


@pytest.fixture
def given(images):
    ids = torch.arange(len(images))
    values = {"images": images, "ids": limbs(ids), "seed": limbs(torch.full_like(ids, 5))}
    return {name: value.numpy() for name, value in values.items()}


def onnx_runtime(file, given):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, given)


@pytest.mark.parametrize("chunk", [1, 5, CHUNK, 1000])
def test_onnx_runtime_takes_the_same_steps_to_the_same_images(folder, given, tmp_path, chunk):
    model = onnx.load(folder / "defended.masked.onnx")
    compact(model, chunk=chunk)
    onnx.save(model, tmp_path / "compacted.onnx")

    compacted, masked = (
        onnx_runtime(file, given) for file in (tmp_path / "compacted.onnx", folder / "defended.masked.onnx")
    )

    assert len(set(masked[1].tolist())) > 1
    assert (compacted[1] == masked[1]).all()
    for one, other in zip(compacted, masked, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0, atol=1e-5)


def test_openvino_takes_it(folder, given):
    import openvino

    model = openvino.Core().compile_model(folder / "defended.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    answered = model(given)

    assert (answered["steps"] == onnx_runtime(folder / "defended.masked.onnx", given)[1]).all()


def test_a_turn_runs_the_images_that_still_need_a_step_and_no_others(folder, images):
    running = []

    class Counted(Compress):
        """Keeps how many images it was given."""

        op_domain = ""

        def _run(self, indices, condition, axis=None):
            running.append(len(indices))
            return super()._run(indices, condition, axis=axis)

    Counted.__name__ = "Compress"
    noise = torch.zeros(9, 2, *images.shape[1:])
    evaluator = ReferenceEvaluator(str(folder / "noised.onnx"), new_ops=[Counted])

    steps = evaluator.run(None, {"images": images.numpy(), "noise": noise.numpy()})[1]

    assert running[0] == max(running) == CHUNK < 2 * len(images)  # two outer loops
    # An image is looked at once more than it takes steps, for a step begins with the look that may be the last.
    assert sum(running) == steps.sum() + 2 * len(images)
    assert running[-1] < CHUNK


def test_a_file_without_a_loop_of_ours_is_refused(folder):
    with pytest.raises(ValueError, match="got 0 loops"):
        compact(onnx.load(folder / "step.onnx"))
