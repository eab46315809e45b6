import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_step import CONVOLUTION, _Convolutions, by_kind, operations
from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet


def test_the_operations_of_a_step_are_those_of_its_convolutions():
    images = torch.rand(2, 1, 16, 16)
    step = ActiveDefense(WideResNet(10, 1, in_channels=1).eval(), beta=1.0, compile=False).masked_step(images).step
    seen = _Convolutions(step.graph)

    with torch.no_grad():
        seen.run(images)
        with FlopCounterMode(display=False) as counter:
            step(images)

    assert len(seen.calls) == 6  # the stem and a block's two, and back
    assert sum(operations(call) for call in seen.calls) == counter.get_total_flops()


def test_a_profile_is_told_by_kind():
    weight, images = torch.rand(8, 8, 3, 3), torch.rand(4, 8, 16, 16)
    sides = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    taken = by_kind(lambda: CONVOLUTION(images, weight, *sides), turns=2)

    assert max(taken, key=taken.get) == "convolutions"
