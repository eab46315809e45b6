"""A server as processes: uvicorn, with bounds on connections that say nothing."""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from fastdef.serving.metrics import FOLDER
from fastdef.serving.page import link

_LOG = logging.getLogger("uvicorn.error")
_ERRORS = _LOG.getChild("connections")
_IMPORT_SECONDS = 120  # of a new process, which answers nobody meanwhile and must not be taken for hung
_ERRORS.setLevel(logging.ERROR)  # a warning for each malformed request would fill a log


class BoundedProtocol(H11Protocol):
    """Lets no client hold a connection without a request under way.

    A connection has ``head_seconds`` for the head of its first request, and again after each answer. Where
    ``connections`` are open, a new one takes the place of the one that has been without a request longest; where each
    has one, the new one is closed.
    """

    config: "Config"
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Make room for it, and start its time."""
        super().connection_made(transport)
        self.logger = _ERRORS
        self._wait_for_head()
        if len(self.connections) > self.config.connections:
            next(iter(self.config.idle)).drop()  # itself, where every other has a request

    def handle_events(self) -> None:
        """A request that has its head stops the time."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Start the time anew."""
        self._wait_for_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """What has come whole is answered, within the worker's grace; a body that is still to come is not."""
        self.config.close()
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self.drop()
        else:
            super().shutdown()

    def drop(self) -> None:
        """Close it, without a word."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self.config.idle[self] = None
        self._patience = self.loop.call_later(self.config.head_seconds, self.drop)

    def _stop_waiting(self) -> None:
        self.config.idle.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()


class Config(uvicorn.Config):
    """Of a server.

    Args:
        make: makes the application, in the process that serves it; can be sent to another where ``workers`` are many.
        connections: that may be open at a time, in each process.
        head_seconds: that the head of a request may take.
        token: of the page, whose link is told once the port is known; None for no page.
        options: of uvicorn.
    """

    def __init__(
        self,
        make: Callable[[], FastAPI],
        *,
        connections: int = 512,
        head_seconds: float = 10.0,
        token: str | None = None,
        **options: Any,
    ) -> None:
        fixed: dict[str, Any] = {"factory": True, "http": BoundedProtocol, "ws": "none", "loop": "asyncio"}
        fixed["timeout_worker_healthcheck"] = _IMPORT_SECONDS
        super().__init__(make, proxy_headers=False, access_log=False, **fixed, **options)
        self.connections, self.head_seconds = connections, head_seconds
        self.token = token
        self._closing = False
        self.idle: dict[BoundedProtocol, None] = {}  # the longest without a request comes first

    def tell(self, port: int) -> None:
        """Say where the page is, if there is one."""
        if self.token is not None:
            where = link(self.host, port, self.token)
            _LOG.info("Page at %s (shows what helps an attacker, to who has this link; --no-page for none)", where)

    def close(self) -> None:
        """Have the worker end, which answers or fails what it accepted within its grace."""
        if not self._closing:
            self._closing = True
            app: Any = self.loaded_app
            threading.Thread(target=app.state.close).start()


class Server(uvicorn.Server):
    """Says where the page is, once it listens."""

    config: Config

    async def startup(self, sockets: Any = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if sockets is None and self.started:
            self.config.tell(self.servers[0].sockets[0].getsockname()[1])


def run(config: Config) -> None:
    """Serve until told to stop; in a process for each worker, where there are several.

    Raises:
        ValueError: as ``make`` does, or where a worker process could not make its application.
    """
    if config.workers == 1:
        config.load()  # before the server takes the signals: what loads can be interrupted
        Server(config).run()
        return
    config.app = _InWorker(config.app)
    with TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder  # the processes to come read it
        listening = listen(config)
        config.tell(listening.getsockname()[1])
        supervisor = Multiprocess(config, sockets=[listening])
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise ValueError("needs workers that start, and one refused: its line is above")


def listen(config: Config) -> socket.socket:
    """The socket that processes share.

    Asyncio sets TCP_NODELAY on sockets of its own alone. Without it a client that keeps its connection waits 40 ms for
    each answer.
    """
    listening = config.bind_socket()
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _InWorker:
    """Makes the application in a worker process; what refuses to be made stops the server, and is not tried again."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self) -> FastAPI:
        try:
            app: FastAPI = self._make()
        except ValueError as error:
            sys.stderr.write(f"fastdef: {error}\n")
            sys.exit(STARTUP_FAILURE)
        return app
