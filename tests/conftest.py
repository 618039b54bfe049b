from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tests compare digits and mean the same on any processor. Ray workers take it over from here.
os.environ["RAYSYS_BFLOAT16"] = "0"

from raysys.cluster import ClusterSettings, Resources, connect


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Resources]:
    """One Ray on this machine for all tests marked `ray`: two CPUs, the least we promise."""
    with connect(ClusterSettings(address="local", cpus=2, gpus=0, object_store_gib=0.2)) as have:
        yield have
