"""Ports of the loopback that two tests at once do not fight for."""

import secrets
import socket
from contextlib import suppress

from tests.waiting import wait_until


def free_port():
    """A port below those from which a system chooses for whoever connects, so that none is given it meanwhile."""
    while True:
        port = 20000 + secrets.randbelow(12000)  # every test begins with the same seeds
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def port_of(server, thread):
    """Where a server of uvicorn listens that a thread runs and that was given port 0."""
    wait_until(lambda: server.started or not thread.is_alive(), 120)
    return server.servers[0].sockets[0].getsockname()[1]
