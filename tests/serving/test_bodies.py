"""What a body has to be, without a server: each request is what uvicorn would make of it."""

import asyncio
import io
import json

import pytest
import torch
from PIL import Image
from starlette.requests import Request

from fastdef.data import Decoder
from fastdef.serving.bodies import Refusal, number, read_body, read_image

RAW = "application/octet-stream"
SHAPE = (3, 4, 6)
PIXELS = torch.arange(72, dtype=torch.uint8).view(SHAPE) * 3


def request(*messages, query=b"", **headers):
    """One of which the server hears those messages, or whose body those bytes are, and nothing more."""
    heard = iter(messages)

    async def receive():
        message = next(heard, None)
        if message is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": message} if isinstance(message, bytes) else message

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": given, "query_string": query}, receive)


def part(body):
    return {"type": "http.request", "body": body, "more_body": True}


def png():
    file = io.BytesIO()
    Image.fromarray(PIXELS.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def form(*files, fields=0, kind=b"image/png"):
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
    head += (b"Content-Type: " + kind + b"\r\n" if kind else b"") + b"\r\n"
    field = b'--x\r\nContent-Disposition: form-data; name="field"\r\n\r\nvalue\r\n'
    return field * fields + b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


def body_of(request, most=5, seconds=30.0):
    return asyncio.run(read_body(request, most=most, seconds=seconds))


def image_of(body, kind, shape=SHAPE, **options):
    given = request(body, content_type=kind)
    return asyncio.run(read_image(given, shape, most=1 << 20, seconds=30.0, decoder=Decoder(), **options))


@pytest.mark.parametrize("announced", [{}, {"content_length": "5"}, {"content_length": "4"}])
def test_a_body_of_the_most_bytes_is_read(announced):
    assert body_of(request(part(b"abc"), b"de", **announced)) == b"abcde"
    assert body_of(request(b"abcd", **announced)) == b"abcd"


def test_a_body_that_announces_more_than_the_most_is_413_unread():
    with pytest.raises(Refusal, match="needs a body of at most 5 bytes, got 6") as refused:
        body_of(request(content_length="6"))  # of which nothing comes

    assert refused.value.status == 413
    assert refused.value.headers == {"Connection": "close"}


@pytest.mark.parametrize("announced", [{}, {"content_length": "many"}])
def test_a_body_that_announces_nothing_is_413_at_the_byte_too_much(announced):
    with pytest.raises(Refusal, match="at most 5 bytes, got 6") as refused:
        body_of(request(part(b"abc"), part(b"def"), **announced))  # and nothing more comes

    assert refused.value.status == 413


def test_a_body_that_stops_coming_is_408():
    with pytest.raises(Refusal, match=r"needs a body within 0.01 s") as refused:
        body_of(request(part(b"abc")), seconds=0.01)

    assert refused.value.status == 408
    assert refused.value.headers == {"Connection": "close"}


def test_who_leaves_within_the_body_is_499():
    with pytest.raises(Refusal, match="the client left") as refused:
        body_of(request(part(b"abc"), {"type": "http.disconnect"}))

    assert refused.value.status == 499


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("image/png", png()),
        ("Image/PNG; charset=binary", png()),
        (RAW, (PIXELS / 255).numpy().astype("<f4").tobytes()),
        ("application/json", json.dumps({"image": (PIXELS / 255).tolist()}).encode()),
        ("multipart/form-data; boundary=x", form(png())),
        ("multipart/form-data; boundary=x", form(png(), fields=8)),
    ],
    ids=["png", "png in capitals", "raw", "json", "form", "form with fields"],
)
def test_an_image_that_is_not_square_comes_in_every_form(kind, body):
    torch.testing.assert_close(image_of(body, kind), PIXELS / 255)


def test_an_image_file_of_another_size_is_scaled_where_it_is_asked_for():
    assert image_of(png(), "image/png", shape=(3, 2, 3), resize=True).shape == (3, 2, 3)
    with pytest.raises(ValueError, match="2 x 3 pixels, got 4 x 6"):
        image_of(png(), "image/png", shape=(3, 2, 3))


@pytest.mark.parametrize("length", [0, 287, 289, 576])
def test_raw_floats_are_as_many_as_the_image_has(length):
    with pytest.raises(ValueError, match=rf"needs 288 bytes of float32 for \(3, 4, 6\), got {length}"):
        image_of(bytes(length), RAW)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"{}", "'image'"),
        (b"[1]", "list indices must be integers"),
        (b'{"image": [[1], [1, 2]]}', "expected sequence of length 1"),
        (b'{"image": [' + b"1" + b"0" * 400 + b"]}", "int too large"),
        (b"[" * 100_000, "recursion"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_json_that_is_no_image_is_refused_with_the_reason(body, reason):
    with pytest.raises(ValueError, match=rf"needs JSON such as .*, got other: .*{reason}"):
        image_of(body, "application/json")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (form(), "needs a form with one file, got 0"),
        (form(png(), png()), "needs a form with one file: Too many files"),
        (form(png(), fields=9), "needs a form with one file: Too many fields"),
        (b"rubbish", "needs a form with one file"),
    ],
    ids=["no file", "two files", "nine fields", "no form"],
)
def test_a_form_has_one_file_and_few_fields_beside_it(body, reason):
    with pytest.raises(ValueError, match=reason):
        image_of(body, "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/plain", b""), ("", b""), ("multipart/form-data; boundary=x", form(png(), kind=b""))],
    ids=["text", "none", "none in a form"],
)
def test_a_content_type_that_is_none_of_an_image_is_415(kind, body):
    with pytest.raises(Refusal, match=r"needs content-type image/png, .* or multipart/form-data, got") as refused:
        image_of(body, kind)

    assert refused.value.status == 415


def test_a_number_of_the_query_is_none_where_it_is_not_given():
    given = request(query=b"a=3&b=0.5")

    assert number(given, "a", int) == 3
    assert number(given, "b", float) == 0.5
    assert number(given, "c", int) is None


@pytest.mark.parametrize(
    ("query", "reason"), [(b"a=x", "needs a as a number, got 'x'"), (b"a=1.5", "got '1.5'"), (b"a=", "a is empty")]
)
def test_what_is_no_number_is_refused(query, reason):
    with pytest.raises(ValueError, match=reason):
        number(request(query=query), "a", int)
