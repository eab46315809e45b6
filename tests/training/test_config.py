from itertools import pairwise

import pytest

from fastdef.training import TrainConfig


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing():
    config = TrainConfig(epochs=10, lr=0.1, warmup=0.2)

    rates = [config.rate(step, 100) for step in range(1000)]

    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 200
    assert rates[0] < 0.001
    assert rates[-1] < 1e-6
    assert all(a < b for a, b in pairwise(rates[:201]))
    assert all(a > b for a, b in pairwise(rates[200:]))


def test_a_step_schedule_falls_at_its_milestones():
    config = TrainConfig(epochs=4, lr=0.1, schedule="step", milestones=(1, 3))

    assert [round(config.rate(epoch * 10, 10), 6) for epoch in range(4)] == [0.1, 0.01, 0.01, 0.001]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": float("nan")},
        {"weight_decay": -0.1},
        {"momentum": float("nan")},
        {"clip": float("inf")},
        {"schedule": "cosine"},
        {"ema": 1.0},
        {"warmup": 0.0},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ValueError, match="training needs"):
        TrainConfig(**change)
