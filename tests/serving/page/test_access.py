from base64 import urlsafe_b64decode

import pytest

from fastdef.serving.page.access import link, make_token


def test_nobody_guesses_a_token():
    tokens = {make_token(True, "127.0.0.1") for _ in range(8)}

    assert len(tokens) == 8
    assert all(len(urlsafe_b64decode(token + "==")) >= 16 for token in tokens)


@pytest.mark.parametrize(
    ("host", "there"),
    [("LOCALHOST".lower(), True), ("server.lan", False), ("gateway", False), ("localhost.example.org", False)],
)
def test_of_all_names_localhost_alone_is_this_machine(host, there):
    assert (make_token(None, host) is not None) == there


@pytest.mark.parametrize(
    ("host", "opens"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/#t"),
        ("localhost", "http://localhost:80/#t"),
        ("::1", "http://[::1]:80/#t"),
    ],
)
def test_a_link_holds_the_token_in_its_fragment(host, opens):
    assert link(host, 80, "t") == opens
