from __future__ import annotations

import pytest

from raysys.cluster import (
    ClusterSettings,
    Pool,
    Resources,
    StagePlan,
    cores_per,
    local_resources,
    preflight,
    share,
)
from raysys.errors import UserError
from raysys.text.embeddings import plan_embedding
from raysys.text.engine import EngineSettings, SamplingSettings
from raysys.text.engine_vllm import VllmEngine

TWO_CORES = Resources(cpus=2.0, gpus=0.0, memory_gib=16.0)


def engine(cluster: ClusterSettings, **settings) -> VllmEngine:
    return VllmEngine(EngineSettings(**settings), cluster, SamplingSettings())


def test_pools_that_take_every_cpu_are_refused_with_the_numbers():
    # Two actors of one CPU on two CPUs leave nothing for read and write tasks: Ray Data would hang.
    plan = StagePlan("item_profiles", (Pool("engine", 2, 1.0),))
    with pytest.raises(UserError) as caught:
        preflight(plan, TWO_CORES)
    for word in ("item_profiles", "needs 3 CPUs", "has 2", "engine 2 x", "engine_replicas"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "word"),
    [
        (Pool("engine", 1, 0.5, gpus=1.0), "needs 1 GPUs, the cluster has 0"),
        (Pool("engine", 2, 0.1, memory_gib=9.0), "needs 18.0 GiB memory"),
    ],
)
def test_gpus_and_memory_are_checked(pool, word):
    with pytest.raises(UserError, match=word):
        preflight(StagePlan("s", (pool,)), TWO_CORES)


def test_one_cpu_cannot_run_an_engine_and_the_tasks_beside_it():
    cluster = ClusterSettings(cpus=1)
    have = Resources(1.0, 0.0, 16.0)
    with pytest.raises(UserError, match="has 1"):
        preflight(engine(cluster).plan("item_profiles", have), have)


@pytest.mark.parametrize("cpus", [2, 3, 4, 16])
def test_the_default_plan_fits(cpus):
    cluster = ClusterSettings()
    have = Resources(float(cpus), 0.0, 16.0)
    preflight(engine(cluster).plan("item_profiles", have), have)
    preflight(plan_embedding(cluster, have), have)


def test_replicas_share_what_is_left():
    cluster = ClusterSettings(engine_replicas=3, embedding_workers=3)
    have = Resources(8.0, 0.0, 64.0)
    plan = engine(cluster).plan("s", have)
    assert plan.pools[0].actors == 3
    assert plan.pools[0].cpus == pytest.approx((8 - 1) / 3, abs=0.01)
    preflight(plan, have)
    preflight(plan_embedding(cluster, have), have)


def test_gpus_are_taken_where_there_are_any():
    have = Resources(8.0, 2.0, 64.0)
    plan = engine(ClusterSettings(engine_replicas=2), tensor_parallel=1).plan("s", have)
    assert plan.pools[0].gpus == 1
    preflight(plan, have)
    with pytest.raises(UserError, match="needs 4 GPUs"):
        preflight(
            engine(ClusterSettings(engine_replicas=2), tensor_parallel=2).plan("s", have), have
        )


def test_shares_round_down_and_never_reach_zero():
    assert share(TWO_CORES, 1, reserved=0.1) == pytest.approx(0.9)
    assert share(Resources(1.0, 0.0, 1.0), 4, reserved=0.5) == pytest.approx(0.1)


def test_a_local_start_declares_at_least_two_cpus():
    assert local_resources(ClusterSettings()).cpus >= 2
    assert local_resources(ClusterSettings(cpus=5, gpus=0)).cpus == 5
    assert cores_per(10_000) == 1
