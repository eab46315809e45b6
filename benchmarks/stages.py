"""Work in stages, each one command: what is done is not done again, and time can run out."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fastdef.io import write_json


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: its own in the folder.
        command: its arguments.
        resume: a file whose existence says that the command began before and goes on with ``--resume``.
        module: whose command it is.
    """

    name: str
    command: list[str]
    resume: Path | None = None
    module: str = "fastdef"


def run(stages: list[Stage], out: Path, *, minutes: float | None) -> bool:
    """Run what is not done yet, in order; returns whether all of it is done.

    When the minutes are over, the stage under way is interrupted; called again, it goes on where it was, as training
    and evaluation do. ``stages.json`` has every command with its seconds.

    Raises:
        SystemExit: if a stage fails, with its last words.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / "stages.json"
    done = json.loads(record.read_text()) if record.is_file() else {}
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for stage in stages:
        told = " ".join(stage.command)
        if done.get(stage.name, {}).get("command") == told:
            continue
        seconds = _run(stage, out, end)
        if seconds is None:
            print(f"{stage.name}: out of time; the same command goes on here", flush=True)
            return False
        done[stage.name] = {"command": told, "seconds": round(seconds, 1)}
        write_json(record, done)
        print(f"{stage.name}: done after {seconds:.0f} s", flush=True)
    return True


def _run(stage: Stage, out: Path, end: float | None) -> float | None:
    """Seconds, or None when the time ran out."""
    resume = ["--resume"] if stage.resume is not None and stage.resume.exists() else []
    start = time.monotonic()
    if end is not None and start >= end:
        return None
    with (out / f"{stage.name}.log").open("w") as log:
        command = [sys.executable, "-m", stage.module, *stage.command, *resume]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(None if end is None else end - start)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return None
    if status not in (0, 1):  # 1: the adaptive evaluation's checks on itself failed, which is a result
        raise SystemExit(f"{stage.name}: status {status}\n" + (out / f"{stage.name}.log").read_text()[-2000:])
    return time.monotonic() - start
