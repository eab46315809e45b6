import onnxruntime
import pytest
import torch

from fastdef.defense.noise import uniform_noise
from fastdef.export.arithmetic_noise import ArithmeticNoise, translations
from fastdef.export.files import quiet

# Ids and seeds of one word and of two, and the largest there are.
IDS = torch.tensor([0, 1, 2**33 + 5, 2**63 - 1])
LOOPS = torch.tensor([0, 3, 1, 2**31 - 1])


# 75 values are no multiple of the four that a counter makes.
@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 1, 1)])
@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1])
def test_it_is_the_defense_s_noise_to_the_bit(seed, shape):
    noise = ArithmeticNoise(shape, sigma=0.075)(IDS, LOOPS, torch.full_like(IDS, seed))

    assert torch.equal(noise, uniform_noise(IDS, LOOPS, shape, seed=seed, sigma=0.075))


def test_each_image_may_have_a_seed_of_its_own():
    seeds = torch.tensor([5, 6, 5, 2**62])

    noise = ArithmeticNoise((1, 4, 4), sigma=1.0)(IDS, LOOPS, seeds)

    rows = zip(IDS.split(1), LOOPS.split(1), seeds.tolist(), strict=True)
    expected = [uniform_noise(i, loop, (1, 4, 4), seed=seed, sigma=1.0) for i, loop, seed in rows]
    assert torch.equal(noise, torch.cat(expected))


def test_onnx_runtime_makes_it_to_the_bit_with_nothing_but_arithmetic_and_a_table(tmp_path):
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            ArithmeticNoise((3, 5, 5), sigma=0.075).eval(),
            (IDS, LOOPS, torch.full_like(IDS, 3)),
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            input_names=["ids", "loops", "seed"],
            opset_version=20,
            custom_translation_table=translations(),
            verbose=False,
        )
    (tmp_path / "noise.onnx").write_bytes(program.model_proto.SerializeToString())
    operators = {node.op_type for node in program.model_proto.graph.node}

    session = onnxruntime.InferenceSession(tmp_path / "noise.onnx", providers=["CPUExecutionProvider"])
    seeds = torch.full_like(IDS, 2**41 + 9)
    given = {"ids": IDS[:3].numpy(), "loops": LOOPS[:3].numpy(), "seed": seeds[:3].numpy()}
    noise = torch.from_numpy(session.run(None, given)[0])

    assert torch.equal(noise, uniform_noise(IDS[:3], LOOPS[:3], (3, 5, 5), seed=2**41 + 9, sigma=0.075))
    assert not any(name.startswith(("Bit", "Shift")) for name in operators)
