"""What a cluster asks of Ray, written down by a stand-in: Ray itself is not everywhere, and takes half a minute."""

import asyncio
import importlib.util
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fastdef.serving.options import Options

MODEL = Path("model.safetensors")


class Serve(ModuleType):
    """``ray.serve``, as far as it is asked for anything."""

    def __init__(self):
        super().__init__("ray.serve")
        self.asked, self.failure = [], KeyboardInterrupt
        self.Application = object
        self.ingress = lambda: lambda made: made
        self.get_replica_context = lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="a replica"))

    def deployment(self, made, **options):
        return SimpleNamespace(bind=lambda *given: SimpleNamespace(made=made, options=options, given=given))

    def start(self, **options):
        self.asked.append(("start", options))

    def run(self, application, **options):
        self.asked.append(("run", application.given[0], options))
        raise self.failure

    def delete(self, name):
        self.asked.append(("delete", name))

    def shutdown(self):
        self.asked.append("shutdown")


@pytest.fixture
def serve(monkeypatch):
    ray, handle, serve = ModuleType("ray"), ModuleType("ray.serve.handle"), Serve()
    ray.serve, handle.DeploymentHandle = serve, object
    for name, module in (("ray", ray), ("ray.serve", serve), ("ray.serve.handle", handle)):
        monkeypatch.setitem(sys.modules, name, module)
    return serve


@pytest.fixture
def cluster(serve, monkeypatch):
    """The module, for this test alone."""
    spec = importlib.util.find_spec("fastdef.serving.cluster")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    return module


def test_a_replica_takes_what_fits_its_slots_and_its_queue_and_has_longer_to_end_than_its_worker(cluster):
    options = Options(model=MODEL, slots=3, queue=5, grace=20.0, threads=2)

    built = cluster.app(options)

    assert built.options == {
        "name": "Defense",
        "max_ongoing_requests": 8,
        "max_queued_requests": 5,
        "backpressure_config": {"retry_after_s": 1},
        "health_check_period_s": cluster.TELLING,
        "graceful_shutdown_timeout_s": 25.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": 3,
        "ray_actor_options": {"num_cpus": 2},
    }
    assert built.made is cluster.Replica
    given, ledger = built.given
    assert given is options
    assert (ledger.made, ledger.options) == (
        cluster.Ledger,
        {"name": "Ledger", "ray_actor_options": {"num_cpus": 0}},
    )


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"device": "CUDA".lower()}, {"num_cpus": 1, "num_gpus": 1}),
        ({"device": "cpu"}, {"num_cpus": 1}),
    ],
)
def test_each_replica_of_cuda_has_a_gpu_of_its_own(cluster, options, asked):
    assert cluster.app(Options(model=MODEL, **options)).options["ray_actor_options"] == asked


def test_a_device_by_number_is_refused(cluster):
    with pytest.raises(ValueError, match="replicas need the device"):
        cluster.app(Options(model=MODEL, device="cuda:1"))


def test_a_fixed_number_of_replicas_takes_the_place_of_the_configuration_s(cluster):
    assert cluster.app(Options(model=MODEL, replicas=4)).options["num_replicas"] == 4


class Told:
    """That something was; nobody has to wait for it."""

    def __await__(self):
        return iter(())


class Remote:
    """A ledger in another process."""

    def __init__(self):
        self.told = []
        self.put = SimpleNamespace(remote=self._put)
        self.merged = SimpleNamespace(remote=self._merged)

    def _put(self, name, text):
        self.told.append((name, text))
        return Told()

    async def _merged(self):
        return b"of all"


@pytest.fixture
def replica(cluster, monkeypatch):
    worker = SimpleNamespace(alive=True)
    state = SimpleNamespace(worker=worker, scrape=lambda: b"own")
    made = SimpleNamespace(state=state)
    monkeypatch.setattr(Options, "application", lambda options, merge: setattr(made, "merge", merge) or made)
    ledger = Remote()
    return SimpleNamespace(app=made, worker=worker, ledger=ledger, own=cluster.Replica(Options(model=MODEL), ledger))


def test_a_replica_is_healthy_as_long_as_its_worker_is_and_tells_what_it_has_counted(replica):
    assert replica.own.__serve_build_asgi_app__() is replica.app

    replica.own.check_health()
    replica.worker.alive = False
    with pytest.raises(RuntimeError, match="the thread that answers has ended"):
        replica.own.check_health()

    assert replica.ledger.told == [("a replica", b"own")] * 2


def test_a_scrape_tells_what_was_counted_here_and_gives_what_all_have(replica):
    assert asyncio.run(replica.app.merge(b"newest")) == b"of all"

    assert replica.ledger.told == [("a replica", b"newest")]


@pytest.fixture
def ran(cluster, serve, monkeypatch):
    """What running a cluster came to: cores and variables of its processes, and what Ray was asked for."""

    def ran(options, **place):
        joined = []

        @contextmanager
        def join(cores, variables):
            joined.append((cores, variables))
            yield

        monkeypatch.setattr(cluster, "joined", join)
        cluster.run(options, **{"host": "127.0.0.1", "port": 80, "keep_alive": 7, **place})
        return joined[0]

    return ran


@pytest.mark.parametrize(("replicas", "cores"), [(None, 3), (1, 3), (2, 6)])
def test_a_run_has_the_cores_of_its_replicas_and_ends_in_order_where_it_is_told_to_stop(ran, serve, replicas, cores):
    options = Options(model=MODEL, replicas=replicas, threads=3)

    joined = ran(options)

    assert joined[0] == cores
    assert joined[1] == {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "fastdef.serving.cluster:middlewares"}
    assert serve.asked == [
        ("start", {"http_options": {"host": "127.0.0.1", "port": 80, "keep_alive_timeout_s": 7}}),
        ("run", options, {"name": "fastdef"}),
        ("delete", "fastdef"),
        "shutdown",
    ]


def test_replicas_that_do_not_start_are_an_error_in_a_line(ran, serve):
    serve.failure = RuntimeError("no model")

    with pytest.raises(ValueError, match="needs replicas that start: no model"):
        ran(Options(model=MODEL))

    assert serve.asked[-1] == "shutdown"


def test_port_zero_is_one_that_is_free(ran, serve):
    ran(Options(model=MODEL), port=0)

    port = serve.asked[0][1]["http_options"]["port"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
    assert port > 1


def test_told_to_stop_a_run_is_interrupted(cluster):
    with pytest.raises(KeyboardInterrupt):
        cluster._interrupt(15, None)


def test_around_every_application_is_what_answers_for_a_replica_that_died(cluster):
    from fastdef.serving.unanswered import Unanswered

    assert [middleware.cls for middleware in cluster.middlewares()] == [Unanswered]
