"""The parts that are to do, made in this process or by replicas on a cluster."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fastdef._cluster import check_replica_device, joined, threads_each
from fastdef.offline.part import PartMaker
from fastdef.offline.plan import Plan


def run(plan: Plan, *, replicas: int | None = None, progress: Callable[[int], object] = bool) -> None:
    """Make every part that is not there.

    Args:
        plan: of the parts.
        replicas: of Ray, each with a device, on this machine or the cluster that RAY_ADDRESS names, where every machine
            sees images, model and folder under the same paths; this process if not given.
        progress: called with the number of images of each part that was just written.

    Raises:
        ValueError: for a model that does not fit, a folder that cannot be written, or without Ray.
    """
    todo = plan.todo()
    if not todo:
        return
    for part in _here(plan, todo) if replicas is None else _by_replicas(plan, todo, replicas):
        progress(len(plan.numbers(part)))


def _here(plan: Plan, todo: list[int]) -> Iterator[int]:
    maker = PartMaker(plan.recipe)
    for part in todo:
        maker.write(plan.numbers(part), plan.path(part))
        yield part


def _by_replicas(plan: Plan, todo: list[int], replicas: int) -> Iterator[int]:
    """Parts as they are written. One whose replica dies is made again by another: a file is whole or not there."""
    check_replica_device(plan.recipe.device)
    threads = threads_each(replicas)
    device: dict[str, Any] = {"num_gpus": 1} if plan.recipe.device == "cuda" else {"num_cpus": threads}
    PartMaker(replace(plan.recipe, device="cpu"))  # refuses before a process starts
    with joined(replicas * threads + 1):
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            _Replica, fn_constructor_args=(plan,), concurrency=replicas, **device
        )
        for row in rows.iter_rows():
            yield int(row["part"])


class _Replica:
    def __init__(self, plan: Plan) -> None:
        self._plan, self._maker = plan, PartMaker(plan.recipe)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = int(row["item"])
        self._maker.write(self._plan.numbers(part), self._plan.path(part))
        return {"part": part}
