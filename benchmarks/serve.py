"""Requests a second of the endpoint, beside plain uvicorn with the same routes and model.

A LightGCN of one epoch on `--dataset` (MovieLens-1M) answers lists of 10 for its users, one key,
nothing kept in memory, so that every request ranks the catalogue. In turn: one uvicorn process;
`raysys serve` with HAProxy; the same with five times the connections (overload); and reranked lists
with a deadline of 1 s, from a stand-in for a language model that answers after 50 to 400 ms. The
load comes from this process and takes its share of the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reproduce import find_dataset
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.pipeline import run_stages
from raysys.serving.loadtest import put_load
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings

KEY, PROFILE = "a-key-of-the-benchmark", "serve/throughput.yaml"
OPEN = ["doors.requests_per_second=1e6", "doors.burst=1000000"]
NOTHING_KEPT = ["cache_lists=0", "warm=false"]
DEADLINE_S = 1.0


def prepared_run(dataset: str, folder: Path) -> Path:
    """A run with a model of one epoch."""
    source = find_dataset(dataset)
    files = [source / name for name in ("interactions.parquet", "interactions_implicit.parquet")]
    values = {
        "out": folder / "run",
        "data": {
            "interactions": next(path for path in files if path.is_file()),
            "items": source / "items.parquet",
            "split": {"method": "ratio"},
        },
        "models": {"lightgcn": {"backbone": "lightgcn"}},
        "train": {"epochs": 1},
    }
    settings = parse_settings(RunSettings, values, source="benchmark")
    run_stages(settings, ("data", "train", "recommend"))
    return folder / "run"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(command: list[str], ready: str) -> Iterator[psutil.Process]:
    """A process that has said that it is ready; stopped with SIGTERM."""
    environment = {**os.environ, "RAYSYS_API_KEY": KEY, "RAY_worker_niceness": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        if not any(ready in line for line in process.stdout):
            raise UserError(f"{' '.join(command)} did not start.")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(120)


def uvicorn_only(run: Path, port: int) -> None:
    """The same routes in one uvicorn process."""
    import uvicorn

    from raysys.serving.app import local_app

    values = {"run": run, "cache_lists": 0, "warm": False}
    doors = {"requests_per_second": 1e6, "burst": 1_000_000}
    settings = ServeSettings.model_validate({**values, "doors": doors})
    config = uvicorn.Config(
        local_app(settings, KEY), "127.0.0.1", port, log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    threading.Thread(target=_say_when_started, args=(server,), daemon=True).start()
    server.run()


def _say_when_started(server: Any) -> None:
    while not server.started:
        time.sleep(0.05)
    print("ready", flush=True)


@contextmanager
def stand_in() -> Iterator[str]:
    """Address of an endpoint that answers every question after 50 to 400 ms, in form."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        schema = asked["response_format"]["json_schema"]["schema"]["properties"]
        ((name, value),) = schema.items()
        await asyncio.sleep(random.uniform(0.05, 0.4))
        content = json.dumps({name: list(range(value.get("minItems", 1), 0, -1))})
        return web.json_response({"choices": [{"message": {"content": content}}]})

    port, loop = free_port(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def memory_mb(process: psutil.Process) -> float:
    """Of a process and its children; pages that they share are counted for each."""
    family = [process, *process.children(recursive=True)]
    return float(sum(one.memory_info().rss for one in family) / 2**20)


def raysys_serve(run: Path, port: int, *overrides: str) -> list[str]:
    """The command."""
    words = [word for override in (*OPEN, *overrides) for word in ("--set", override)]
    raysys = str(Path(sys.executable).with_name("raysys"))
    profile = ["--profile", PROFILE, "--haproxy"]
    return [raysys, "serve", str(run), "--port", str(port), *profile, *words]


def measured(run: Path, seconds: float, connections: int) -> dict[str, Any]:
    """All figures."""
    ids = Dataset.load(run / "data").user_ids[:2000]
    bodies = [{"user_id": user, "k": 10} for user in ids]

    def load(port: int, **changes: Any) -> dict[str, float]:
        asked = {"connections": connections, "seconds": seconds} | changes
        url = f"http://127.0.0.1:{port}/v1/recommend"
        found = put_load(url, KEY, asked.pop("bodies", bodies), **asked)
        if found.unanswered:
            print(f"without an answer: {dict(found.unanswered)}", file=sys.stderr, flush=True)
        return found.figures()

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serve", "--uvicorn", str(run), str(port)]
    with served(command, "ready"):
        load(port, seconds=3)
        plain = load(port)
    print(f"uvicorn: {plain}", file=sys.stderr, flush=True)
    port = free_port()
    with served(raysys_serve(run, port, *NOTHING_KEPT), "serving") as process:
        load(port, seconds=5)
        ours, before = load(port), memory_mb(process)
        over = load(port, connections=5 * connections)
        grown = memory_mb(process) / before - 1
        time.sleep(10)
        after = load(port, seconds=5)
    print(f"serve: {ours}\noverload: {over}\nafter: {after}", file=sys.stderr, flush=True)
    port = free_port()
    with stand_in() as address:
        settings = [
            *("rerank.engine.kind=http", f"rerank.engine.http.base_url={address}"),
            *("rerank.method.name=prompt", "rerank.engine.http.requests_per_second=1000"),
            f"deadline_s={DEADLINE_S}",
        ]
        with served(raysys_serve(run, port, *NOTHING_KEPT, *settings), "serving"):
            load(port, seconds=3, connections=8)
            reranked = load(port, connections=8)
    print(f"reranked: {reranked}", file=sys.stderr, flush=True)
    return {
        "rps": ours["rps"],
        "p50_ms": ours["p50_ms"],
        "p95_ms": ours["p95_ms"],
        "p99_ms": ours["p99_ms"],
        "uvicorn_rps": plain["rps"],
        "uvicorn_p99_ms": plain["p99_ms"],
        "share_of_uvicorn": round(ours["rps"] / plain["rps"], 3),
        "errors_5xx": ours["errors_5xx"] + over["errors_5xx"],
        "overload": {name: over[name] for name in ("ok", "shed", "errors", "without_retry_after")},
        "overload_p95_ms": over["p95_ms"],
        "p95_after_overload_ms": after["p95_ms"],
        "overload_memory_growth": round(grown, 3),
        "rerank_p95_ms": reranked["p95_ms"],
        "rerank_deadline_ms": 1000 * DEADLINE_S,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--run", type=Path, help="a finished run in place of the data set")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--uvicorn", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.uvicorn:
        uvicorn_only(Path(arguments.uvicorn[0]), int(arguments.uvicorn[1]))
        return
    try:
        with tempfile.TemporaryDirectory() as name:
            run = arguments.run or prepared_run(arguments.dataset, Path(name))
            figures = measured(run, arguments.seconds, arguments.connections)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"benchmark": "serve", "figures": figures}))


if __name__ == "__main__":
    main()
