import os
import signal
import stat
import subprocess
import sys

import pytest

from fastdef.io import atomic_write, read_record, write_json

# RLIMIT_FSIZE makes the kernel refuse the bytes past the limit, in the middle of a file, as a full disk does.
FULL_DISK = """
import resource, sys
from fastdef.io import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_write(sys.argv[1]) as temporary:
        temporary.write_bytes(b"n" * 100_000)
except ValueError as error:
    print(error)
"""

KILLED = """
import os, signal, sys
from fastdef.io import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_file_is_there_whole_and_alone(tmp_path):
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a").exists()

    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_an_old_file_is_replaced_only_at_the_end(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"

    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")

    def write():
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()

    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path / "a"], capture_output=True, text=True, check=True)

    assert done.stdout == f"cannot write {tmp_path / 'a'}: File too large\n"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_what_a_killed_writer_left_goes_with_the_next_file_and_a_living_one_s_stays(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], check=False)
    left = names(tmp_path)

    with atomic_write(tmp_path / "b") as living:
        living.write_bytes(b"half")
        with atomic_write(tmp_path / "c") as temporary:
            temporary.write_bytes(b"new")
        assert names(tmp_path) == sorted([living.name, "c"])

    assert killed.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert names(tmp_path) == ["b", "c"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=f"cannot write {tmp_path}/no/a: No such file or directory"),
        atomic_write(tmp_path / "no" / "a"),
    ):
        pytest.fail("the body ran")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(ValueError, match=r"cannot write .*: Permission denied"), atomic_write(tmp_path / "a"):
        pytest.fail("the body ran")


# A file below a file: what a folder that cannot be written looks like even to root.
def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    with pytest.raises(ValueError, match=r"cannot write .*/a/b: Not a directory"), atomic_write(tmp_path / "a" / "b"):
        pytest.fail("the body ran")


@pytest.mark.parametrize("name", [".", "pipe"])
def test_what_is_not_a_file_is_never_replaced(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ValueError, match="it is there and is not a file"), atomic_write(tmp_path / name):
        pytest.fail("the body ran")

    assert names(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")

    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"


def test_the_file_is_as_readable_as_any_other_new_file(tmp_path):
    (tmp_path / "other").write_bytes(b"")

    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")

    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "input").read_bytes()

    assert names(tmp_path) == []


def test_the_bytes_are_forced_to_the_disk_before_the_file_takes_its_name(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", lambda fd: forced.append((stat.S_ISDIR(os.fstat(fd).st_mode), names(tmp_path))))

    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")

    assert forced == [(False, [temporary.name]), (True, ["a"])]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_record_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)

    with pytest.raises(ValueError, match=r"settings.json does not hold the settings of a run") as refused:
        read_record(tmp_path / "settings.json", "the settings of a run")
    assert "\n" not in str(refused.value)


def test_a_record_is_what_was_written(tmp_path):
    write_json(tmp_path / "settings.json", {"a": [1, None]})

    assert read_record(tmp_path / "settings.json", "a record") == {"a": [1, None]}
