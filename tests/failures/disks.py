"""Places that do not take what is written to them, and then do."""

import os
import subprocess
from functools import partial

import pytest

from tests.failures import subprocess_runner
from tests.failures.processes import run


class SmallFiles:
    """Files of a bounded size, which takes no rights: for who writes, a full disk in the middle of a file.

    Args:
        folder: of the place; made here.
    """

    def __init__(self, folder):
        self.folder = folder
        self._prepare = None
        folder.mkdir()

    def shut(self, room):
        """Takes no more than about so many bytes, or none."""
        self._prepare = partial(subprocess_runner.small_files, room)

    def open(self):
        """Takes everything."""
        self._prepare = None

    def run(self, arguments, folder, **when):
        """Run a command under these conditions."""
        return run(arguments, folder, prepare=self._prepare, **when)

    def close(self):
        """Leave nothing behind."""


class ReadOnlyFolder(SmallFiles):
    """Folders without the bit to write, which binds root too once it has given up its powers."""

    def shut(self, room):
        self._prepare = subprocess_runner.without_powers
        self._set(0o555)

    def open(self):
        self._set(0o755)

    def close(self):
        self._set(0o755)

    def _set(self, bits):
        for folder in (self.folder, *self.folder.rglob("*")):
            if folder.is_dir():
                folder.chmod(bits)


class FullDisk(SmallFiles):
    """A file system in memory, with a ballast."""

    def __init__(self, folder):
        super().__init__(folder)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a file system is not allowed here")

    def shut(self, room):
        free = os.statvfs(self.folder)
        (self.folder / BALLAST).write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))

    def open(self):
        (self.folder / BALLAST).unlink()

    def close(self):
        subprocess.run(["umount", self.folder], check=True)


class ReadOnlyDisk(FullDisk):
    """The same, mounted anew without leave to write."""

    def shut(self, room):
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def open(self):
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


BALLAST = ".ballast"
MOUNTED = (FullDisk, ReadOnlyDisk)
DISKS = (SmallFiles, ReadOnlyFolder, *MOUNTED)
