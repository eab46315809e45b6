"""A client that is refused while it still sends reads why: its connection ends after its body, not in its middle."""

import asyncio
import time
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Lingering:
    """Reads on, and drops, what a client still sends when its answer is written already.

    A server that closes a connection on unread bytes resets it, and the reset overtakes the answer: the client sees
    a broken pipe instead of its 413. So the answer is written whole, the rest of the body is read, and then the
    response ends.

    Args:
        app: answers.
        seconds: that it reads on at most.
        patience: seconds without a byte after which it stops.
    """

    def __init__(self, app: ASGIApp, seconds: float, patience: float = 1.0) -> None:
        self.app, self.seconds, self.patience = app, seconds, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, and end the response when the body has."""
        if scope["type"] != "http" or not _announces_body(scope):
            await self.app(scope, receive, send)
            return
        body = _Body(receive)

        async def send_and_linger(message: Message) -> None:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not ends or body.ended:
                await send(message)
                return
            await send({**message, "more_body": True})
            await self._drop_rest(body)
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, body.receive, send_and_linger)

    async def _drop_rest(self, body: "_Body") -> None:
        end = time.monotonic() + self.seconds
        with suppress(TimeoutError):
            while not body.ended and (left := end - time.monotonic()) > 0:
                await asyncio.wait_for(body.receive(), min(left, self.patience))


class _Body:
    """A request's body as it comes, and whether all of it has."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def receive(self) -> Message:
        message = await self._receive()
        self.ended = self.ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


def _announces_body(scope: Scope) -> bool:
    """Whether a body follows the head at once; one that waits for ``100 Continue`` does not."""
    headers = dict(scope["headers"])
    comes = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    return comes and b"expect" not in headers
