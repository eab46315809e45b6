"""A server of many replicas, each with a device of its own, on Ray Serve.

    serve run examples/ray-serve.yaml

Every replica is the application of ``fastdef serve`` around a worker of its own. Ray sends a request to the replica
with the shorter queue, starts and ends replicas by the length of the queues, replaces one whose worker has died, and
lets one that is to go answer what it has. Noise is drawn in the replica from the system: no two share a seed or ids.
"""

import signal
import socket
import threading
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from fastdef._cluster import check_replica_device, joined
from fastdef.serving.ledger import Ledger
from fastdef.serving.options import Options
from fastdef.serving.unanswered import Unanswered

NAME, REPLICAS, LEDGER = "fastdef", "Defense", "Ledger"  # of application and deployments, as a configuration has them
TELLING = 5.0  # seconds between two checks of a replica's health, at which it tells what it has counted


class Replica:
    """One device and its worker, behind Ray's proxies.

    Args:
        options: of the application.
        ledger: is told what is counted here.
    """

    def __init__(self, options: Options, ledger: DeploymentHandle) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._ledger = ledger
        self._app = options.application(merge=self._merge)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray serves."""
        return self._app

    def check_health(self) -> None:
        """Tell the ledger what was counted here.

        Raises:
            RuntimeError: where the thread that answers has ended; Ray then replaces the replica.
        """
        self._ledger.put.remote(self._name, self._app.state.scrape())
        if not self._app.state.worker.alive:
            raise RuntimeError("the thread that answers has ended")

    async def _merge(self, own: bytes) -> bytes:
        await self._ledger.put.remote(self._name, own)
        return await self._ledger.merged.remote()


def app(options: Options) -> Application:
    """The application, for a configuration's ``import_path``.

    A replica takes the images that fit its slots and its queue; beyond that each proxy holds as many requests as one
    queue does, and answers 503 to more. A replica is added where there are more requests than slots.

    Raises:
        ValueError: for a device by number.
    """
    check_replica_device(options.device)
    gpu = {"num_gpus": 1} if options.device == "cuda" else {}
    fixed: dict[str, Any] = {} if options.replicas is None else {"num_replicas": options.replicas}
    replicas = serve.deployment(
        serve.ingress()(Replica),
        name=REPLICAS,
        max_ongoing_requests=options.slots + options.queue,
        max_queued_requests=options.queue,
        backpressure_config={"retry_after_s": 1},
        health_check_period_s=TELLING,
        graceful_shutdown_timeout_s=options.grace + 5,  # the worker is done before
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": options.threads, **gpu},
        **fixed,
    )
    ledger = serve.deployment(Ledger, name=LEDGER, ray_actor_options={"num_cpus": 0})
    return replicas.bind(options, ledger.bind())


def middlewares() -> list[Middleware]:
    """What Ray's proxies put around every application, where ``CALLBACK`` is in their environment."""
    return [Middleware(Unanswered)]


CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:{middlewares.__name__}"}  # by Ray's own name


def run(options: Options, *, host: str, port: int, keep_alive: int) -> None:
    """Serve with ``options.replicas`` on this machine until told to stop; then answer what was accepted.

    Args:
        options: of the application.
        host: address to listen on.
        port: 0 takes one that is free.
        keep_alive: seconds an idle connection is kept.

    Raises:
        ValueError: where a replica does not start.
    """
    with joined((options.replicas or 1) * options.threads, CALLBACK):
        signal.signal(signal.SIGTERM, _interrupt)  # in place of Ray's, which ends the process at once
        place = {"host": host, "port": port or _free_port(host), "keep_alive_timeout_s": keep_alive}
        try:
            serve.start(http_options=place)
            serve.run(app(options), name=NAME)
            threading.Event().wait()
        except KeyboardInterrupt:
            serve.delete(NAME)  # the proxies stay until the replicas have answered
        except RuntimeError as error:
            raise ValueError(f"needs replicas that start: {error}") from error
        finally:
            serve.shutdown()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
