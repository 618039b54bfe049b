from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tests compare digits and mean the same on any processor. Ray workers take it over from here.
os.environ["RAYSYS_BFLOAT16"] = "0"

from raysys.cluster import ClusterSettings, Resources, connect
from raysys.stages.context import Share


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Resources]:
    """One Ray on this machine for all tests marked `ray`: two CPUs, the least we promise."""
    with connect(ClusterSettings(address="local", cpus=2, gpus=0, object_store_gib=0.2)) as have:
        yield have


@pytest.fixture(scope="session")
def in_process(local_ray: Resources) -> Share:
    """Models are trained in this process: the same bits (tests/training), without the ten seconds
    that workers of Ray Train take to start. For tests of what comes before and after."""
    return Share(local_ray, watch=lambda *_: None)
