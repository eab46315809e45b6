"""Who may see the page: whoever has the link. It holds a token in its fragment, which no browser sends to a server."""

import secrets
from ipaddress import ip_address


def make_token(page: bool | None, host: str) -> str | None:
    """The token of a page, None for no page.

    Args:
        page: whether there is one; None: where only this machine reaches the server.
        host: address that the server listens on.
    """
    wanted = _is_loopback(host) if page is None else page
    return secrets.token_urlsafe(16) if wanted else None


def link(host: str, port: int, token: str) -> str:
    """What opens the page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/#{token}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
