from types import SimpleNamespace

import pytest

from fastdef.serving.metrics import Metrics


def reply(seconds, **fields):
    return SimpleNamespace(
        **{"started": True, "steps": 3, "converged": True, "expired": False, **fields, "seconds": seconds}
    )


@pytest.fixture
def metrics():
    return Metrics(SimpleNamespace(waiting=4))


def lines(metrics):
    return dict(line.rsplit(" ", 1) for line in metrics.scrape().decode().splitlines() if not line.startswith("#"))


def test_every_answer_is_in_the_latencies(metrics):
    for seconds in (0.02, 0.3, 4.0):
        metrics.count(reply(seconds))

    found = lines(metrics)
    assert float(found["fastdef_seconds_count"]) == 3
    assert float(found["fastdef_seconds_sum"]) == pytest.approx(4.32)
    assert float(found['fastdef_seconds_bucket{le="0.5"}']) == 2
    assert float(found["fastdef_steps_total"]) == 9
    assert float(found["fastdef_waiting"]) == 4


def test_what_never_began_is_counted_alone(metrics):
    metrics.count(reply(1.0, started=False))

    found = lines(metrics)
    assert (float(found["fastdef_never_begun_total"]), float(found["fastdef_images_total"])) == (1, 0)
    assert float(found["fastdef_seconds_count"]) == 0


def test_capped_and_expired_are_told_apart(metrics):
    for _ in range(2):
        metrics.count(reply(1.0, converged=False))
    metrics.count(reply(1.0, converged=False, expired=True))

    found = lines(metrics)
    assert (float(found["fastdef_capped_total"]), float(found["fastdef_expired_total"])) == (2, 1)


def test_what_was_done_to_images_is_counted_by_its_kind(metrics):
    for _ in range(2):
        metrics.treat({"turned": 1, "converted": 2})

    found = lines(metrics)
    assert float(found['fastdef_treated_total{how="turned"}']) == 2
    assert float(found['fastdef_treated_total{how="converted"}']) == 4
