import socket

from fastdef.serving.run import Config, listen


def test_answers_of_several_processes_do_not_wait_for_the_client_s_acknowledgement():
    with listen(Config(lambda: None, port=0)) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
