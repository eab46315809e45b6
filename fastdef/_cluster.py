"""Ray, where one machine or one device is not enough. It is imported here, and where a replica runs, and only then."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"several replicas need {error.name}: pip install 'fastdef[ray]'") from error
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
