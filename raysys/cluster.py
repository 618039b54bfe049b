"""Connect to Ray, plan what each stage takes, and refuse what would hang.

Ray Data waits for ever, without an error, when actor pools hold all the CPUs
that its own read, map and write tasks need. So every stage states its actor
pools as a `StagePlan`, and `preflight` checks the sum before anything starts.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
from pydantic import Field

from raysys.errors import UserError
from raysys.observe import get_logger
from raysys.settings import Settings

GIB = 1 << 30
#: CPUs left to Ray Data's own tasks (read, map, write) beside the actor pools.
TASK_CPUS = 1.0
#: Share of one CPU that each small Ray Data task or helper actor of ours asks for.
SMALL_CPUS = 0.1
#: What the processes of a local Ray get to end by themselves.
_SECONDS_TO_END = 5.0
logger = get_logger(__name__)


#: A local Ray reports to nobody. Its reports would wake a dozen processes every second, and on two
#: cores each wake-up stalls the language model's threads.
LOCAL_RAY = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    # An idle worker process beyond the number of CPUs would be ended after a second, and a new one
    # started, for two seconds of both cores, in each round of a conversation.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}


class ClusterSettings(Settings):
    """What a person sets once; each stage's share is computed from it."""

    address: str = "local"
    """`local` starts Ray in this process; `auto` or `HOST:PORT` joins a running cluster."""
    cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local start; default: the machine's cores, at least 2."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of a local start; default: all that are visible."""
    engine_replicas: int = Field(default=1, ge=1)
    """LLM engines that work side by side."""
    embedding_workers: int = Field(default=1, ge=1)
    """Text embedding actors."""
    train_workers: int = Field(default=1, ge=1)
    """Ray Train workers."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Shared memory of a local start for rows in flight."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has: logical CPUs, GPUs, and memory in GiB."""

    cpus: float
    gpus: float
    memory_gib: float


@dataclass(frozen=True)
class Pool:
    """Actors of one kind: how many, and what each takes (memory in GiB)."""

    name: str
    actors: int
    cpus: float
    gpus: float = 0.0
    memory_gib: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """The actor pools of one stage, and the CPUs that must stay free for its tasks."""

    stage: str
    pools: tuple[Pool, ...]
    task_cpus: float = TASK_CPUS

    def describe(self) -> str:
        """The plan as one line of numbers."""
        parts = [
            f"{pool.name} {pool.actors} x ({pool.cpus:g} CPU, {pool.gpus:g} GPU, "
            f"{pool.memory_gib:g} GiB)"
            for pool in self.pools
        ]
        return ", ".join([*parts, f"tasks {self.task_cpus:g} CPU"])


def preflight(plan: StagePlan, have: Resources) -> None:
    """Refuse a plan that this cluster cannot run.

    Raises:
        UserError: CPUs, GPUs or memory are short; the message has the numbers
            and the setting to change.
    """
    cpus = sum(pool.actors * pool.cpus for pool in plan.pools) + plan.task_cpus
    gpus = sum(pool.actors * pool.gpus for pool in plan.pools)
    memory = sum(pool.actors * pool.memory_gib for pool in plan.pools)
    problems = []
    # A hair of slack: shares such as 0.9 + 0.1 do not add up exactly in binary.
    if cpus > have.cpus + 1e-6:
        problems.append(f"needs {cpus:g} CPUs, the cluster has {have.cpus:g}")
    if gpus > have.gpus + 1e-6:
        problems.append(f"needs {gpus:g} GPUs, the cluster has {have.gpus:g}")
    if memory > have.memory_gib:
        problems.append(f"needs {memory:.1f} GiB memory, the cluster has {have.memory_gib:.1f}")
    if problems:
        raise UserError(
            f"stage '{plan.stage}' cannot run: {'; '.join(problems)}. Plan: {plan.describe()}. "
            "Lower [cluster] engine_replicas, embedding_workers or train_workers, "
            "raise [cluster] cpus, or join a larger cluster (cluster.address=auto)."
        )
    logger.info("%s: %s", plan.stage, plan.describe())


def local_resources(settings: ClusterSettings) -> Resources:
    """What a local start would have, without starting it."""
    cpus = settings.cpus if settings.cpus is not None else max(2, _cores())
    gpus = settings.gpus if settings.gpus is not None else visible_gpus()
    return Resources(float(cpus), float(gpus), psutil.virtual_memory().available / GIB)


def visible_gpus() -> int:
    """Number of CUDA devices torch sees."""
    import torch

    return torch.cuda.device_count()


def cores_per(actors: int) -> int:
    """Hardware threads for each of `actors` processes on one machine, at least 1.

    Processes whose OpenMP threads outnumber the cores spin against each other,
    so everything that computes sets its thread count from here.
    """
    return max(1, _cores() // max(1, actors))


def _cores() -> int:
    """Hardware threads that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(have: Resources, actors: int, *, reserved: float) -> float:
    """CPUs for each of `actors`, after `reserved` and Ray Data's tasks.

    Rounded down to hundredths, at least 0.1: when that minimum does not fit,
    `preflight` says so.
    """
    left = have.cpus - TASK_CPUS - reserved
    return max(SMALL_CPUS, math.floor(left / actors * 100 + 1e-6) / 100)


def at_a_time(have: Resources, cpus: float, gpus: float, most: int | None, what: str) -> int:
    """How many runs that take so much the cluster holds side by side, at most `most`.

    Raises:
        UserError: not even one.
    """
    fit = math.floor(have.cpus / cpus + 1e-6)
    if gpus:
        fit = min(fit, math.floor(have.gpus / gpus + 1e-6))
    if fit < 1:
        raise UserError(
            f"a {what} takes {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {have.cpus:g} and "
            f"{have.gpus:g}: lower `cpus` (its cores, with what its stages start beside) or `gpus`."
        )
    return min(fit, most or fit)


def several(
    cluster: ClusterSettings, cores: float, gpus: float, beside: float, most: int | None
) -> ClusterSettings:
    """A local Ray with logical CPUs for as many runs as the machine has cores and GPUs for.

    Args:
        cores: that one run computes with.
        beside: CPUs that it reserves beyond these, and hardly uses.
        most: at a time; none: as many as fit.
    """
    if cluster.address != "local" or cluster.cpus is not None:
        return cluster
    have = local_resources(cluster)
    runs = max(1, int(have.cpus / max(1.0, cores)))
    if gpus:
        runs = max(1, min(runs, int(have.gpus / gpus)))
    cpus = math.ceil(min(runs, most or runs) * (cores + beside))
    return cluster.model_copy(update={"cpus": max(2, cpus)})


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[Resources]:
    """Use Ray for a while: join the cluster at `address`, or start Ray on this machine.

    A Ray that was already connected in this process is used and left running.
    A local start listens on loopback only and is shut down at the end.
    """
    _quiet_libraries()
    import ray

    if ray.is_initialized():
        yield connected_resources()
        return
    others = set(psutil.Process().children(recursive=True))
    if settings.address == "local":
        local = local_resources(settings)
        _stay_on_loopback()
        for name, value in LOCAL_RAY.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            num_cpus=int(local.cpus),
            num_gpus=int(local.gpus),
            object_store_memory=int(settings.object_store_gib * GIB),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        try:
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster at '{settings.address}' ({error}). Start one with `ray start` or "
                "`ray up cluster.yaml`, or set cluster.address=local."
            ) from None
    _prepare_ray_data()
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    try:
        yield connected_resources()
    finally:
        started = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        _end(started)


def _end(processes: Iterable[psutil.Process]) -> None:
    """Let the processes of a local Ray end, and end those that do not.

    A Ray Train controller sometimes outlives its Ray, waiting for ever on a lock.
    """
    _, left = psutil.wait_procs(list(processes), timeout=_SECONDS_TO_END)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def connected_resources() -> Resources:
    """What the connected cluster has in all."""
    import ray

    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), total.get("memory", 0.0) / GIB)


def _stay_on_loopback() -> None:
    """Make every server of a local Ray bind 127.0.0.1.

    On Linux Ray takes the machine's outward address, even when told 127.0.0.1,
    and then listens on all interfaces; only its single-machine mode does not.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _quiet_libraries() -> None:
    """Keep notes that no user can act on out of this process's output; our own logs stay."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
    # Its children get a handler and the level INFO unless it has a handler already.
    llm = logging.getLogger("ray.llm")
    llm.addHandler(logging.NullHandler())
    llm.setLevel(logging.WARNING)


def _prepare_ray_data() -> None:
    """Settings of Ray Data that our stages need: no bars and hints over our own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    # It would keep a share of the CPUs for each operator. With the LLM's read task, which waits
    # for the next round, two CPUs leave none for the last one, and no reply would ever come out.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)
