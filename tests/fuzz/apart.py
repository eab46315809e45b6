"""An entrance in a process of its own: a crash or a hang of native code takes that process, and is told."""

import multiprocessing
import resource
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz import catalogue
from tests.fuzz.entrances import check

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([catalogue.__name__])
_SECONDS = 300  # an input may take, on a machine that does much else
_TO_BEGIN = 300  # seconds
_MEMORY = 16 << 30  # addresses, of which torch's libraries take some


class Apart:
    """Checks inputs of an entrance, which is built anew after a crash.

    Args:
        name: of the entrance.
        folder: for its files; made here.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._process: multiprocessing.process.BaseProcess | None = None

    def sanitize_images(self) -> tuple[bytes, ...]:
        """Inputs that are taken, which were tried."""
        self._begin()
        return self._sound

    def check(self, content: bytes) -> bool:
        """Whether it was taken; anything but that or a refusal in one line raises."""
        self._begin()
        self._pipe.send_bytes(content)
        if not self._pipe.poll(_SECONDS):
            self.close()
            raise AssertionError(f"no answer within {_SECONDS} s")
        try:
            taken, told = self._pipe.recv()
        except EOFError as error:
            status = self.close()
            raise AssertionError(f"the process died with status {status}") from error
        assert not told, told
        return taken

    def close(self) -> int | None:
        """End the process; returns the status it had come to."""
        if self._process is None:
            return None
        self._process.join(1)
        status = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = None
        return status

    def _begin(self) -> None:
        if self._process is not None:
            return
        self._folder.mkdir(exist_ok=True)
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(self._name, self._folder, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(_TO_BEGIN), "the entrance was not built in time"
        self._sound = self._pipe.recv()


def _serve(name: str, folder: Path, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    entrance = catalogue.ENTRANCES[name](folder)
    for content in entrance.sound:
        assert check(entrance, content) or name == "command_lines", "a sound input was refused"
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    pipe.send(entrance.sound)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        try:
            pipe.send((check(entrance, content), ""))
        except Exception:  # whatever it is, it is no refusal
            pipe.send((False, traceback.format_exc()))
