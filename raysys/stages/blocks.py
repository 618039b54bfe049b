"""Work through many rows with a pool of Ray actors, block by block; finished blocks are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raysys.cluster import cores_per, preflight
from raysys.observe import progress
from raysys.stages.context import RunContext
from raysys.stages.train import plan_training
from raysys.store import read_arrays, write_arrays


class Blocks(Protocol):
    """What an actor holds: a model, and the rows."""

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Results of some rows, arrays (stop − start, …)."""
        ...


def in_blocks(
    context: RunContext,
    stage: str,
    label: str,
    blocks: type[Blocks],
    arguments: tuple[Any, ...],
    total: int,
    size: int,
    work: Path,
) -> dict[str, np.ndarray]:
    """All rows' results in order.

    Args:
        label: shown beside the progress bar.
        blocks: built with `arguments` once in each actor.
        total: rows.
        size: rows of a block.
        work: folder for finished blocks; the caller removes it.
    """
    import ray
    from ray.util import ActorPool

    found = plan_training(context, context.resources, stage)
    preflight(found, context.resources)
    pool = found.pools[0]
    files = {start: work / f"{start}.safetensors" for start in range(0, total, size)}
    todo = [start for start, file in files.items() if not file.is_file()]
    if todo:
        worker: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(_Worker)
        actors = [worker.remote(blocks, arguments, pool.actors) for _ in range(pool.actors)]
        results = ActorPool(actors).map_unordered(
            lambda actor, start: actor.block.remote(start, min(start + size, total)), todo
        )
        with progress(label, total) as tracker:
            done = total - sum(min(size, total - start) for start in todo)
            for start, arrays in results:
                write_arrays(files[start], arrays)
                done += len(next(iter(arrays.values())))
                tracker.update(done)
    parts = [read_arrays(file) for file in files.values()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Worker:
    """An actor."""

    def __init__(self, blocks: type[Blocks], arguments: tuple[Any, ...], actors: int) -> None:
        import torch

        torch.set_num_threads(cores_per(actors))
        self._blocks = blocks(*arguments)

    def block(self, start: int, stop: int) -> tuple[int, dict[str, np.ndarray]]:
        """`start`, and the results from there on."""
        return start, self._blocks.block(start, stop)
