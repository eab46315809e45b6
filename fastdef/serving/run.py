"""A server as a process: uvicorn with bounds on its connections."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol


def serve(app: FastAPI, *, connections: int, head_seconds: float, **options: Any) -> None:
    """Run the application until it is told to stop.

    Args:
        app: of :func:`fastdef.serving.application`.
        connections: that may be open at a time; another is closed at once.
        head_seconds: that a new connection may take until its first request's head is there.
        options: of uvicorn.
    """
    uvicorn.run(app, http=_bounded(connections, head_seconds), log_level="info", access_log=False, **options)


def _bounded(connections: int, head_seconds: float) -> type[asyncio.Protocol]:
    class Bounded(H11Protocol):
        """Closes what is too much, and what says nothing."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.abort()
                return
            self.loop.call_later(head_seconds, self._check_head)

        def _check_head(self) -> None:
            if self.cycle is None and self.transport is not None:
                self.transport.abort()

    return Bounded
