"""Runs the main paths in a process that may not leave the machine, and writes to FOLDER/seen.json what each asked for.

    python tests/audited_process.py FOLDER NAME ...

Whatever connects to, or looks up, anything but the loopback is refused; every class that a pickle names is noted. The
last two do both on purpose: they show that the watch sees. Python's own sockets and pickles are watched, and not what a
library does in machine code.
"""

import contextlib
import http.client
import io
import json
import pickle
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
Seen = dict[str, list[str]]


class Watch:
    """An audit hook: Python calls it before it opens a socket or unpickles a class."""

    def __init__(self) -> None:
        self.seen: Seen = {}
        self.begin()

    def begin(self) -> Seen:
        """Start anew; returns what was seen before."""
        before, self.seen = self.seen, {"sockets": [], "left": [], "pickled": []}
        return before

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            self.seen["pickled"].append(".".join(map(str, arguments)))
        elif event == "socket.__new__":
            self.seen["sockets"].append(event)
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            self._refuse(arguments[1])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            self._refuse(arguments)

    def _refuse(self, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if host not in LOOPBACK:
            self.seen["left"].append(str(host))
            raise PermissionError(f"no network here, and something asked for {host}")


def imported(folder: Path) -> None:
    import fastdef

    assert fastdef.__all__


def loaded(folder: Path) -> None:
    import torch

    import fastdef
    from fastdef.nn import architecture_of, build, parse_architecture

    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()
    defense = fastdef.ActiveDefense(model, beta=3.0, max_steps=4, compile=False)
    defense.calibrate(torch.rand(8, 1, 28, 28))
    fastdef.save(
        folder / "model.safetensors",
        model,
        architecture=architecture_of(model),
        classes=tuple("abcdefghij"),
        defense=defense.config(),
        training={"shape": [1, 28, 28]},
    )
    fastdef.load(folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "foreign.pt")
    to = ("--out", folder / "imported.safetensors")
    command("import", folder / "foreign.pt", "--architecture", "wrn-10-1", "--in-channels", 1, *to)


def defended(folder: Path) -> None:
    from PIL import Image

    Image.new("L", (28, 28), 90).save(folder / "image.png")
    command("defend", folder / "model.safetensors", folder / "image.png")


def evaluated(folder: Path) -> None:
    command("evaluate", folder / "model.safetensors", *SHIPPED, "--limit", 4, "--no-compile")


def exported(folder: Path) -> None:
    command("export", folder / "model.safetensors", "--out", folder / "exported", "--limit", 4, "--no-check")


def answered(folder: Path) -> None:
    import numpy as np

    from fastdef.export.engine import load_engine

    for driven in (False, True):
        with load_engine(folder / "exported", driven=driven) as engine:
            engine(np.zeros((1, 1, 28, 28), np.float32))


def served(folder: Path) -> None:
    import uvicorn

    import fastdef
    from fastdef.serving import Worker, application

    checkpoint = fastdef.load(folder / "model.safetensors")
    batcher = Worker(fastdef.ActiveDefense.from_checkpoint(checkpoint, slots=2, compile=False), (1, 28, 28))
    app = application(batcher, classes=checkpoint.classes, shape=(1, 28, 28))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {"content-type": "image/png"}
    connection.request("POST", "/classify", (folder / "image.png").read_bytes(), kind)
    status = connection.getresponse().status
    server.should_exit = True
    thread.join()
    assert status == 200


def downloaded(folder: Path) -> None:
    from fastdef.data import load_dataset

    with contextlib.suppress(ValueError):
        load_dataset("cifar10", "test", download=True)


def unpickled(folder: Path) -> None:
    pickle.load(io.BytesIO(pickle.dumps(socket.AF_INET)))


def command(*arguments: object) -> None:
    """``fastdef ...``, which must succeed."""
    from fastdef.cli import main

    sys.argv = ["fastdef", *map(str, arguments)]
    status: object = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    assert not status, sys.argv


SHIPPED = ("--data", "fashion-mnist", "--root", Path(__file__).parents[1] / "fastdef" / "assets")

if __name__ == "__main__":
    place, found, watch = Path(sys.argv[1]), {}, Watch()
    names = sys.argv[2:]
    sys.addaudithook(watch)
    for name in names:
        globals()[name](place)
        found[name] = watch.begin()
    (place / "seen.json").write_text(json.dumps(found))
