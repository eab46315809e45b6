"""The metrics of many replicas as those of one: each tells what it has counted, and all is added up."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

FRESH = 30.0  # seconds after which what a silent replica holds, such as its queue, counts no more
_BORN = "_created"  # when a metric was made, by the library's name


class Ledger:
    """What replicas have told: counts stay when a replica is gone, a gauge goes with it.

    A few kilobytes for each replica that ever was.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, bytes]] = {}

    def put(self, replica: str, text: bytes) -> None:
        """What a replica has counted so far, as Prometheus' text."""
        self._told[replica] = time.monotonic(), text

    def merged(self) -> bytes:
        """All of it, as one server's text."""
        now = time.monotonic()
        return merge((text, now - when < FRESH) for when, text in self._told.values())


def merge(parts: Iterable[tuple[bytes, bool]]) -> bytes:
    """The sums of counters, histograms and, of the replicas that are alive, gauges."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], float]] = {}
    for text, alive in parts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            sums = values.setdefault(family.name, {})
            for sample in family.samples:
                if alive or family.type != "gauge" or sample.name.endswith(_BORN):
                    key = sample.name, frozenset(sample.labels.items())
                    sums[key] = _joined(sample.name, sums.get(key), sample.value)
    for name, sums in values.items():
        for (sample_name, labels), value in sums.items():
            families[name].add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))
    return generate_latest(registry)


def _joined(name: str, so_far: float | None, value: float) -> float:
    if so_far is None:
        return value
    return min(so_far, value) if name.endswith(_BORN) else so_far + value


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
