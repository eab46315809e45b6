"""A request whose replica died has a clean end: 503, to be asked again."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Unanswered:
    """Where an application ends without a response, the client is told to try again.

    A response begins with the first part of its body, so one that broke off between its head and its body is none.

    Args:
        app: answers, or does not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, or with 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head: list[Message] = []
        begun = False

        async def hold(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                head.append(message)
                return
            if not begun:
                begun = True
                await send(head.pop())
            await send(message)

        await self.app(scope, receive, hold)
        if not begun:
            reason = {"error": "the replica that had this request is gone; try again"}
            await JSONResponse(reason, 503, {"Retry-After": "1"})(scope, receive, send)
