"""What a watcher wants to know, for Prometheus."""

import os
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fastdef.serving.worker import Reply, Worker

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the library's processes meet, by its own name


class Metrics:
    """Counted for Prometheus, each application its own."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.images = Counter("fastdef_images", "images answered", registry=self.registry)
        self.steps = Counter("fastdef_steps", "steps of the defense", registry=self.registry)
        self.capped = Counter("fastdef_capped", "images that their cap cut off", registry=self.registry)
        self.expired = Counter("fastdef_expired", "images whose deadline passed", registry=self.registry)
        self.never_begun = Counter("fastdef_never_begun", "images that never had a slot", registry=self.registry)
        self.withdrawn = Counter("fastdef_withdrawn", "images whose client left", registry=self.registry)
        self.refused = Counter("fastdef_refused", "requests refused", ["status"], registry=self.registry)
        self.treated = Counter(
            "fastdef_treated", "images changed to what a viewer shows", ["how"], registry=self.registry
        )
        self.seconds = Histogram("fastdef_seconds", "from coming to answer", registry=self.registry)
        self.waiting = Gauge(
            "fastdef_waiting", "images without a slot", registry=self.registry, multiprocess_mode="livesum"
        )
        self._worker = worker

    def scrape(self) -> bytes:
        """All of it as text, over all processes where there are several."""
        self.waiting.set(self._worker.waiting)
        return generate_latest(_of_all_processes() if FOLDER in os.environ else self.registry)

    def treat(self, counts: Mapping[str, int]) -> None:
        """What was done to images to show them as a viewer does."""
        for how, count in counts.items():
            self.treated.labels(how).inc(count)

    def count(self, reply: Reply) -> None:
        """One more answer, or one that never began."""
        self.waiting.set(self._worker.waiting)
        if not reply.started:
            self.never_begun.inc()
            return
        self.images.inc()
        self.steps.inc(reply.steps)
        self.capped.inc(not reply.converged and not reply.expired)
        self.expired.inc(reply.expired)
        self.seconds.observe(reply.seconds)


def _of_all_processes() -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
