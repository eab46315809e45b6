"""Ray, where one machine or one device is not enough. It is imported here, and where a replica runs, and only then."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastdef._validate import check_installed

_STORE = 200_000_000  # bytes of shared memory; what we send is small
_NAMED = "RAY_ADDRESS"  # of a cluster that is there, by Ray's own name


@contextmanager
def joined(cpus: int, variables: dict[str, str] | None = None) -> Iterator[None]:
    """Ray's cluster, for as long as the ``with`` takes: the one that RAY_ADDRESS names, or one on this machine.

    One on this machine has no dashboard, and reports its use to nobody.

    Args:
        cpus: logical cores of one on this machine.
        variables: of the environment of every process that Ray starts for us.

    Raises:
        ValueError: without Ray, or where the cluster does not answer.
    """
    check_installed("ray", extra="ray", where="a run by several replicas")
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _STORE, "include_dashboard": False}
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables or {}},
            **({} if os.environ.get(_NAMED) else own),
        )
    except ConnectionError as error:
        raise ValueError(f"{_NAMED} needs a cluster that answers, got {os.environ.get(_NAMED)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def threads_each(replicas: int) -> int:
    """Cores of this machine for each of so many replicas, at least one."""
    return max(1, (os.cpu_count() or 1) // replicas)


def check_replica_device(device: str) -> None:
    """Refuse a device that replicas would share: Ray gives each its own GPU, which is called cuda there.

    Raises:
        ValueError: for any device but cpu and cuda.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"replicas need the device cpu, or cuda for a GPU each, got {device}")


@dataclass(frozen=True)
class Ended:
    """How a process of ours ended: its status and all that it printed."""

    status: int
    out: str
    error: str


def torchrun(arguments: Sequence[str], replicas: int, *, device: str) -> list[Ended]:
    """Run a command of ours as one process group, a process in each replica, and wait for its end.

    Every machine needs the data, the model and the folders of the command under the same paths. Where one process fails
    the others are ended, as torchrun does on one machine.

    Args:
        arguments: of ``fastdef``.
        replicas: processes, each with a share of the cores, or a GPU.
        device: cpu, or cuda.

    Raises:
        ValueError: without Ray, or where a replica is lost.
    """
    check_replica_device(device)
    threads = threads_each(replicas)
    with joined(replicas * threads):
        import ray

        needed: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {}
        nodes = [ray.remote(_Node).options(num_cpus=threads, **needed).remote() for _ in range(replicas)]
        try:
            host, port = ray.get(nodes[0].endpoint.remote())
            group = [f"--nnodes={replicas}", "--nproc-per-node=1", f"--master-addr={host}", f"--master-port={port}"]
            command = [*group, "-m", "fastdef", *arguments]
            running = [node.run.remote([f"--node-rank={rank}", *command]) for rank, node in enumerate(nodes)]
            ended: list[Ended] = ray.get(running)
        except ray.exceptions.RayError as error:
            raise ValueError(f"this run has lost one of its replicas: {str(error).splitlines()[0]}") from error
        return ended


class _Node:
    """One replica, in the process that Ray gives it."""

    def endpoint(self) -> tuple[str, int]:
        """An address of this machine that the others reach, and a port of it that is free."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(free.getsockname()[1])

    def run(self, arguments: list[str]) -> Ended:
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return Ended(done.returncode, done.stdout, done.stderr)
