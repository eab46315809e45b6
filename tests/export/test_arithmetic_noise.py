import pytest
import torch

from fastdef.defense.noise import uniform_noise
from fastdef.export.arithmetic_noise import ArithmeticNoise, limbs
from fastdef.export.files import quiet

# Ids and seeds of each number of 16-bit limbs, both sides of 2**31 and 2**32, and the largest there are.
IDS = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**33 + 5, 2**40, 2**63 - 1])
LOOPS = 3


def expected(shape, seeds, *, sigma=0.075):
    rows = zip(IDS.split(1), seeds.tolist(), strict=True)
    return torch.stack([torch.cat([noise(i, loop, shape, seed, sigma) for loop in range(LOOPS)]) for i, seed in rows])


def noise(ids, loop, shape, seed, sigma):
    return uniform_noise(ids, torch.full_like(ids, loop), shape, seed=seed, sigma=sigma)


# 75 values are no multiple of the four that a counter makes; 263,169 make more counters than 16 bits hold.
@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 1, 1), (1, 513, 513)])
@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1])
def test_it_is_the_defense_s_noise_to_the_bit(seed, shape):
    seeds = torch.full_like(IDS, seed)

    made = ArithmeticNoise(shape, sigma=0.075, loops=LOOPS)(limbs(IDS), limbs(seeds))

    assert torch.equal(made, expected(shape, seeds))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The noise alone, in a file."""
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            ArithmeticNoise((3, 5, 5), sigma=0.05, loops=LOOPS).eval(),
            (limbs(IDS), limbs(IDS)),
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}),
            input_names=["ids", "seed"],
            opset_version=20,
            verbose=False,
        )
    path = tmp_path_factory.mktemp("noise") / "noise.onnx"
    path.write_bytes(program.model_proto.SerializeToString())
    return path


def onnx_runtime(file, given):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, given)[0]


def openvino(file, given):
    import openvino

    # Left alone it computes float32 in bfloat16 where the CPU can.
    return openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]


def reference_evaluator(file, given):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(file)).run(None, given)[0]


@pytest.mark.parametrize("engine", [onnx_runtime, openvino, reference_evaluator])
def test_every_engine_makes_it_to_the_bit_with_a_seed_for_each_image(file, engine):
    seeds = torch.tensor([5, 6, 5, 2**62, 2**31, 2**32, 2**41 + 9])

    made = engine(file, {"ids": limbs(IDS).numpy(), "seed": limbs(seeds).numpy()})

    assert torch.equal(torch.from_numpy(made), expected((3, 5, 5), seeds, sigma=0.05))


def test_the_file_has_no_operator_that_engines_lack_or_round(file):
    import onnx

    operators = {node.op_type for node in onnx.load(file).graph.node}

    assert not any(name.startswith(("Bit", "Shift", "Xor", "Div", "Mod")) for name in operators)
