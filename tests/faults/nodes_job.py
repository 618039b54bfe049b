"""A cluster of several nodes on this machine, one of which is lost while it works.

Run in a process of its own, with the scenario and a folder. What was found is in `found.json`
there: Ray's own processes write to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Every server of every node binds 127.0.0.1: see raysys/cluster.py.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ |= {
    "RAY_worker_niceness": "0",
    # A lost node is noticed after two seconds, not after thirty.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}

import psutil
import ray
from ray.cluster_utils import Cluster

FOLDER = Path(sys.argv[2])
NODE = {"num_cpus": 2, "object_store_memory": 100_000_000}


def nodes_alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def node_of(nodes: list[Any], title: str) -> Any:
    """The node on which a process of ours works: its raylet is the process's parent."""
    parents = {
        process.ppid()
        for process in psutil.Process().children(recursive=True)
        if title in " ".join(process.cmdline())
    }
    return next(node for node in nodes if node.all_processes["raylet"][0].process.pid in parents)


def profiling(cluster: Cluster) -> dict[str, Any]:
    """Rows are answered on two nodes, and one of these is lost."""
    from slow_echo_job import SlowEcho

    from raysys.cluster import connected_resources
    from raysys.text.cache import ReplyCache
    from raysys.text.generation import Generation, Request

    lost, _ = cluster.add_node(**NODE), cluster.add_node(**NODE)
    until(lambda: nodes_alive() == 3)
    asked = FOLDER / "asked"
    asked.mkdir()
    names = [f"item {row}" for row in range(60)]

    def lose() -> None:
        until(lambda: len(list(asked.iterdir())) >= 15)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    requests = [Request([{"role": "user", "content": name}], 9, "{}") for name in names]
    with Generation(
        SlowEcho(asked, 0.15),
        ReplyCache(FOLDER / "replies.sqlite"),
        FOLDER / "work",
        stage="toy",
        have=connected_resources(),
        block_rows=4,
    ) as generation:
        replies = generation.ask(requests)
    thread.join()
    until(lambda: nodes_alive() == 2)
    return {
        "asked_at_least_once": len({path.name.rpartition(".")[0] for path in asked.iterdir()}),
        "replies": [reply.text for reply in replies],
    }


def training(cluster: Cluster) -> dict[str, Any]:
    """The node that trains is lost after two checkpoints, and another one has room."""
    from toy_models import toy_settings, write_toy_dataset

    from raysys.store import read_arrays
    from raysys.training.graph_models import train_graph_model
    from raysys.training.jobs import TrainJob
    from raysys.training.loop import TrainSettings
    from raysys.training.ray_train import Placement

    data, output = FOLDER / "data", FOLDER / "output"
    data.mkdir()
    write_toy_dataset(data)
    nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    until(lambda: nodes_alive() == 3)
    gone = []

    def lose() -> None:
        until(lambda: len(list(output.glob(".ray/*/checkpoint_*/state.json"))) >= 2)
        cluster.remove_node(node_of(nodes, "RayTrainWorker"), allow_graceful=False)
        gone.append(json.loads((output / ".progress.json").read_text())["step"])

    thread = threading.Thread(target=lose)
    thread.start()
    job = TrainJob(
        dataset=data,
        model=toy_settings(),
        train=TrainSettings(
            batch_size=32,
            epochs=200,
            learning_rate=0.02,
            validate_every=10,
            patience=200,
            checkpoint_every=10,
        ),
        profiles=data / "vectors.safetensors",
        placement=Placement(1, 2.0),
    )
    result = train_graph_model(job, output)
    thread.join()
    until(lambda: nodes_alive() == 2)
    # The same without a loss, in this process.
    here = replace(job, placement=Placement(watch=lambda *_: None))
    train_graph_model(here, FOLDER / "here")
    ours, theirs = (
        read_arrays(folder / "embeddings.safetensors") for folder in (output, FOLDER / "here")
    )
    difference = max(float(abs(ours[name] - theirs[name]).max()) for name in theirs)
    return {"epochs": result.epochs, "lost_at": gone[0], "difference": difference}


def serving(cluster: Cluster) -> dict[str, Any]:
    """A node with one of two replicas is lost under load; its replica comes back elsewhere."""
    import socket

    from ray import serve
    from toy_run import write_run

    from raysys.serving.app import start
    from raysys.serving.doors import digest_of
    from raysys.serving.loadtest import put_load
    from raysys.serving.profiles import Profile
    from raysys.serving.settings import ServeSettings
    from raysys.settings import parse_settings

    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    until(lambda: nodes_alive() == 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A replica takes a node of its own; the head has no room for one.
    deployments = [{"name": "Ingress", "num_replicas": 2, "ray_actor_options": {"num_cpus": 1.5}}]
    values = {"http_options": {"port": port}, "applications": [{"deployments": deployments}]}
    doors = {"requests_per_second": 1e6, "burst": 1_000_000}
    settings = ServeSettings.model_validate({"run": write_run(FOLDER / "run"), "doors": doors})
    start(settings, {digest_of("secret"): "test"}, parse_settings(Profile, values, source="test"))
    url, bodies = f"http://127.0.0.1:{port}/v1/recommend", [{"user_id": "u2"}]

    def running() -> int:
        state = serve.status().applications["raysys"].deployments["Ingress"].replica_states
        return int(state.get("RUNNING", 0))

    until(lambda: running() == 2)

    def lose() -> None:
        time.sleep(3)
        lost = node_of(nodes, "ServeReplica:raysys:Ingress")
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    load = put_load(url, "secret", bodies, connections=4, seconds=15, rate=30)
    thread.join()
    until(lambda: nodes_alive() == 3 and running() == 2)
    after = put_load(url, "secret", bodies, connections=2, seconds=2, rate=20)
    serve.shutdown()
    return {"during": load.figures(), "after": after.figures()}


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000},
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        found = {"profiling": profiling, "training": training, "serving": serving}[sys.argv[1]](
            cluster
        )
        (FOLDER / "found.json").write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
