import pytest
import torch

from fastdef.serving.ledger import FRESH, Ledger, merge
from fastdef.serving.metrics import Metrics
from fastdef.serving.worker import Reply

REPLY = Reply(
    torch.ones(2) / 2, steps=3, converged=True, expired=False, started=True, id=1, seconds=0.2, smoothed=torch.ones(1)
)


@pytest.fixture
def counted(worker):
    """The text of a replica that has answered so many images, and refused one."""

    def counted(images):
        metrics = Metrics(worker)
        for _ in range(images):
            metrics.count(REPLY)
        metrics.refused.labels(413).inc()
        return metrics.scrape()

    return counted


def values(text):
    pairs = [line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#")]
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: float(value) for name, value in pairs}


def test_counts_and_histograms_of_replicas_add_up(counted):
    ledger = Ledger()
    for name, images in (("a", 2), ("b", 5)):
        ledger.put(name, counted(images))

    told = values(ledger.merged())

    assert told["fastdef_images_total"] == told["fastdef_seconds_count"] == 7
    assert told["fastdef_steps_total"] == 21
    assert told['fastdef_refused_total{status="413"}'] == 2
    assert told['fastdef_seconds_bucket{le="0.25"}'] == 7
    assert told['fastdef_seconds_bucket{le="0.1"}'] == 0


def test_what_a_replica_tells_again_takes_the_place_of_what_it_told(counted):
    ledger = Ledger()
    ledger.put("a", counted(2))
    ledger.put("a", counted(3))

    assert values(ledger.merged())["fastdef_images_total"] == 3


def test_a_replica_that_is_gone_leaves_its_counts_but_no_queue():
    text = b"# TYPE waiting gauge\nwaiting 4.0\n# TYPE done_total counter\ndone_total 2.0\n"

    told = values(merge([(text, True), (text, False)]))

    assert told == {"waiting": 4.0, "done_total": 4.0}


def test_one_replica_s_metrics_are_its_own(counted):
    text = counted(2)

    assert values(merge([(text, True)])) == values(text)


@pytest.mark.parametrize(("silent", "waiting"), [(0.0, 4.0), (FRESH - 1, 4.0), (FRESH + 1, None), (FRESH * 100, None)])
def test_a_gauge_goes_with_a_replica_that_is_silent_and_its_counts_stay(monkeypatch, silent, waiting):
    ledger, now = Ledger(), 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    ledger.put("a", b"# TYPE waiting gauge\nwaiting 4.0\n# TYPE done_total counter\ndone_total 2.0\n")

    now += silent

    told = values(ledger.merged())
    assert told.get("waiting") == waiting
    assert told["done_total"] == 2.0


def test_a_silent_replica_leaves_its_histograms_and_when_its_counts_began():
    text = b'# TYPE took histogram\ntook_bucket{le="+Inf"} 3.0\ntook_count 3.0\ntook_sum 1.5\n'
    text += b"# TYPE done_total counter\ndone_total 2.0\n# TYPE done_created gauge\ndone_created 50.0\n"

    told = values(merge([(text, False), (text.replace(b"50.0", b"40.0"), False)]))

    assert told == {'took_bucket{le="+Inf"}': 6.0, "took_count": 6.0, "took_sum": 3.0, "done_total": 4.0} | {
        "done_created": 40.0
    }
