"""A server's connections and processes, on the loopback and in this process."""

import asyncio
import os
import socket
from types import SimpleNamespace

import pytest
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import ServerState

from fastdef.serving import run as module
from fastdef.serving.run import BoundedProtocol, Config, Server, listen, run

GET, HALF = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nxx"


def test_answers_of_several_processes_do_not_wait_for_the_client_s_acknowledgement():
    with listen(Config(lambda: None, port=0)) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class App:
    """Answers each request whole, once it is let."""

    def __init__(self):
        self.state = SimpleNamespace(close=lambda: self.closed.append(True))
        self.closed, self.asked, self.let = [], asyncio.Event(), asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.asked.set()
        await self.let.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def served(talk, **options):
    """What ``talk`` does with a listening server: its application, its config, its protocols, and what connects."""

    async def main():
        app, protocols = App(), []
        config = Config(lambda: app, log_level="critical", lifespan="off", **options)
        config.load()

        def protocol():
            protocols.append(BoundedProtocol(config=config, server_state=state, app_state={}))
            return protocols[-1]

        state = ServerState()
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        opened = []

        async def connect(sent=b""):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            opened.append(writer)
            writer.write(sent)
            await until(lambda: len(protocols) == len(opened) and protocols[-1].transport)
            return reader, writer

        try:
            await asyncio.wait_for(talk(SimpleNamespace(**locals())), 10)
        finally:
            server.close()
            for writer in opened:
                writer.close()
            for one in protocols:
                one.transport.abort()
            await asyncio.sleep(0)

    asyncio.run(main())


async def until(true):
    while not true():
        await asyncio.sleep(0.001)


async def ends(reader):
    """What comes until the connection ends."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_of_more_connections_than_there_may_be_the_longest_idle_one_makes_room():
    async def talk(server):
        first, second = await server.connect(), await server.connect(b"GET /")
        assert len(server.state.connections) == 2
        third = await server.connect()

        assert await ends(first[0]) == b""
        assert server.state.connections == set(server.protocols[1:])
        assert list(server.config.idle) == server.protocols[1:]
        server.app.let.set()
        for connection in (second, third):
            connection[1].write(b" HTTP/1.1\r\nhost: x\r\n\r\n" if connection is second else GET)
            assert (await connection[0].read(12)) == b"HTTP/1.1 200"

    served(talk, connections=2)


def test_where_every_connection_has_a_request_the_new_one_is_closed():
    async def talk(server):
        working = await server.connect(GET)
        await server.app.asked.wait()
        late = await server.connect()

        assert await ends(late[0]) == b""
        server.app.let.set()
        assert (await working[0].read(12)) == b"HTTP/1.1 200"

    served(talk, connections=1)


def test_a_connection_is_idle_but_for_the_time_between_a_head_and_its_answer():
    async def talk(server):
        reader, writer = await server.connect(GET[:9])
        (protocol,) = server.protocols
        assert list(server.config.idle) == [protocol]

        writer.write(GET[9:])
        await server.app.asked.wait()
        await until(lambda: not server.config.idle)
        assert protocol._patience.cancelled()

        server.app.let.set()
        await reader.readuntil(b"ok")
        writer.write(GET[:9])
        await until(lambda: protocol.conn.trailing_data[0] == GET[:9])
        assert list(server.config.idle) == [protocol]
        assert not protocol._patience.cancelled()

    served(talk)


def test_a_connection_without_a_head_is_closed_when_its_time_is_over():
    async def talk(server):
        reader, _ = await server.connect(GET[:9])

        assert await ends(reader) == b""
        assert not server.config.idle
        assert not server.state.connections

    served(talk, head_seconds=0.01)


def test_a_client_that_leaves_is_waited_for_no_more():
    async def talk(server):
        _, writer = await server.connect()
        writer.close()

        await until(lambda: not server.config.idle)
        assert server.protocols[0]._patience.cancelled()

    served(talk)


def test_told_to_stop_what_is_idle_and_what_has_half_a_body_is_closed():
    async def talk(server):
        idle, half = await server.connect(), await server.connect(HALF)
        await server.app.asked.wait()

        for protocol in server.protocols:
            protocol.shutdown()

        assert await ends(idle[0]) == await ends(half[0]) == b""

    served(talk)


def test_told_to_stop_what_has_come_whole_is_answered_and_then_closed():
    async def talk(server):
        reader, _ = await server.connect(GET)
        await server.app.asked.wait()

        server.protocols[0].shutdown()
        server.app.let.set()

        answer = await ends(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"ok")

    served(talk)


def test_told_to_stop_what_was_answered_before_its_body_came_is_closed_in_peace():
    async def talk(server):
        server.app.let.set()
        reader, _ = await server.connect(HALF)
        await reader.readuntil(b"ok")

        server.protocols[0].shutdown()

        assert await reader.read() == b""  # no reset

    served(talk)


def test_the_worker_is_closed_once_and_beside_the_connections(monkeypatch):
    class Now:
        def __init__(self, target):
            self.start = target

    monkeypatch.setattr("threading.Thread", Now)
    app = App()
    config = Config(lambda: app)
    config.load()

    for _ in range(3):
        config.close()

    assert len(app.closed) == 1


def test_a_server_believes_no_proxy_and_logs_no_request():
    config = Config(lambda: nothing)
    config.load()

    assert config.loaded_app is nothing  # with nothing around it
    assert not config.access_log


@pytest.fixture
def told(monkeypatch):
    """The links that are logged."""
    links = []
    monkeypatch.setattr(module._LOG, "info", lambda text, *given, **options: links.extend(given))
    return links


@pytest.mark.parametrize(("token", "links"), [(None, []), ("t", ["http://127.0.0.1:80/#t"])])
def test_the_link_is_told_where_there_is_a_page(told, token, links):
    Config(lambda: None, token=token).tell(80)

    assert told == links


async def nothing(scope, receive, send):
    """An application."""


def started(app, sockets=None, **options):
    """The port of a server that has started, and ended."""

    async def start():
        server = Server(Config(lambda: app, port=0, token="t", log_level="critical", **options))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets)
        port = server.servers[0].sockets[0].getsockname()[1]
        await server.shutdown(sockets)
        return port

    return asyncio.run(start())


def test_a_server_tells_the_link_once_it_listens(told):
    port = started(nothing, lifespan="off")

    assert f"http://127.0.0.1:{port}/#t" in told


def test_a_process_that_shares_a_socket_leaves_the_link_to_its_parent(told):
    with listen(Config(lambda: None, port=0, log_level="critical")) as listening:
        started(nothing, [listening], lifespan="off")

    assert not any("#t" in str(link) for link in told)


class Supervisor:
    """Of processes that end by such statuses, without any."""

    statuses = ()

    def __init__(self, config, sockets):
        self.config, self.sockets = config, sockets
        self.processes = [SimpleNamespace(exitcode=status) for status in self.statuses]
        Supervisor.last = self

    def run(self):
        self.folder = os.environ[module.FOLDER]
        assert os.path.isdir(self.folder)  # noqa: PTH112
        (self.port,) = (one.getsockname()[1] for one in self.sockets)
        self.sockets[0].close()


@pytest.fixture
def supervise(monkeypatch):
    """Runs a server whose processes end so; its supervisor."""
    monkeypatch.setattr(module, "Multiprocess", Supervisor)
    monkeypatch.setenv(module.FOLDER, "none")  # which is put back

    def supervise(*statuses, make=lambda: nothing):
        monkeypatch.setattr(Supervisor, "statuses", statuses)
        run(Config(make, port=0, workers=len(statuses), token="t", log_level="critical"))
        return Supervisor.last

    return supervise


def test_several_workers_share_a_socket_and_a_folder_of_metrics_that_goes_with_them(supervise, told):
    supervisor = supervise(0, -15)

    assert f"http://127.0.0.1:{supervisor.port}/#t" in told
    assert not os.path.exists(supervisor.folder)  # noqa: PTH110
    assert supervisor.config.app() is nothing


@pytest.mark.parametrize("statuses", [(0, STARTUP_FAILURE), (STARTUP_FAILURE, -15), (STARTUP_FAILURE,) * 2])
def test_a_worker_that_refuses_to_start_ends_the_server_with_an_error(supervise, told, statuses):
    with pytest.raises(ValueError, match="needs workers that start"):
        supervise(*statuses)


@pytest.mark.parametrize("statuses", [(0, 0), (-15, -9), (1, 4)])
def test_workers_that_end_otherwise_are_no_error(supervise, told, statuses):
    assert supervise(*statuses).statuses == statuses


def test_a_worker_that_cannot_make_its_application_says_why_in_a_line_and_is_not_tried_again(supervise, told, capsys):
    def make():
        raise ValueError("needs a model")

    application = supervise(0, 0, make=make).config.app

    with pytest.raises(SystemExit) as ended:
        application()
    assert ended.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err == "fastdef: needs a model\n"


def test_one_worker_is_this_process(monkeypatch):
    ran = []
    monkeypatch.setattr(Server, "run", lambda server: ran.append(server.config.loaded_app))
    monkeypatch.setattr(module, "Multiprocess", None)

    run(Config(lambda: nothing, port=0, log_level="critical", lifespan="off"))

    assert ran == [nothing]
