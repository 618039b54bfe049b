"""What each way of reranking costs: calls and tokens a user, and its speed beside one at a time.

`speedup`: users a minute when all users' questions go to the engine in batches, over users a
minute of a loop that asks vLLM the same questions one after the other, without Ray, with the same
engine arguments. `prefix_cache_speedup`: vLLM's time for all questions of `relevancy` without and
with prefix caching. Starting up is not counted; nothing is cached from before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llm_throughput import (
    LIMIT,
    Recorder,
    dataset_of,
    in_another_process,
    warm_generation,
)
from benchmarks.tables import markdown, save, this_command
from raysys.data.dataset import Dataset
from raysys.models.linear import ItemKNN, ItemKNNSettings
from raysys.ranking.rerank import MethodSettings
from raysys.ranking.retrieve import retrieve
from raysys.schema import SPLITS, TRAIN
from raysys.text.context import context_of
from raysys.text.evidence import shown_items
from raysys.text.prompts import load_prompts
from raysys.text.rerank import Pool, rerank
from raysys.text.writing import Writer

METHODS = ("prompt", "pairwise", "batches", "relevancy")


def pools_of(dataset: Dataset, size: int) -> dict[str, Pool]:
    """The best items by their neighbours for every user, who is known by his latest five."""
    items = shown_items(dataset.items, (), 80, "benchmark")
    knn = ItemKNN(dataset.matrix(TRAIN), ItemKNNSettings())
    users = np.arange(len(dataset.user_ids))
    found, _ = retrieve(knn.score_block, users, dataset.matrix(*SPLITS), size)
    likes = dataset.histories(TRAIN)
    return {
        str(user): Pool(
            context_of(None, [items[item] for item in likes[user][-5:]], 0),
            [items[item] for item in found[user] if item >= 0],
            user,
        )
        for user in users.tolist()
    }


def table_of(figures: dict[str, Any]) -> str:
    """The figures as markdown."""
    head = ["method", "calls a user", "tokens a user", "times as fast as one question at a time"]
    rows = [
        [
            f"`{method}`",
            f"{figures[method]['calls_per_user']:.1f}",
            f"{figures[method]['tokens_per_user']:,.0f}",
            f"{figures[method]['speedup']:.1f}",
        ]
        for method in METHODS
    ]
    about = (
        f"{figures['users']} users, pools of {figures['pool']}; prefix caching makes vLLM "
        f"{figures['prefix_cache_speedup']:.2f} times as fast on `relevancy`"
    )
    return f"{markdown(head, rows)}\n{about}\n"


def main() -> None:
    """Run all and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="amazon18-games")
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--pool", type=int, default=20)
    parser.add_argument("--alone", type=int, default=20, help="questions of the plain loop")
    parser.add_argument("--save", action="store_true", help="show the table in docs/rerank.md")
    arguments = parser.parse_args()
    prompts = load_prompts("rerank", "games", words=0)
    figures: dict[str, Any] = {"users": arguments.users, "pool": arguments.pool}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = dataset_of(arguments.dataset, arguments.users, folder)
        pools = pools_of(dataset, arguments.pool)
        with warm_generation("rerank", folder) as generation:
            for method in METHODS:
                recorder = Recorder(generation)
                writer = Writer(recorder, prompts, LIMIT)
                start = time.perf_counter()
                found = rerank(writer, prompts, pools, MethodSettings(name=method))
                seconds = time.perf_counter() - start
                calls = sum(one.calls for one in found.values())
                asked = sum(len(requests) for requests in recorder.rounds)
                tokens = sum(one.prompt_tokens + one.generated_tokens for one in found.values())
                told[method] = recorder.rounds
                figures[method] = {
                    "calls_per_user": round(asked / len(pools), 2),
                    "tokens_per_user": round(tokens / max(1, calls) * asked / len(pools), 1),
                    "degraded": sum(one.scores is None for one in found.values()),
                    "seconds": round(seconds, 1),
                }
                print(f"{method}: {figures[method]}", file=sys.stderr, flush=True)
        single = in_another_process(told, folder, "on", arguments.alone)
        with_cache = in_another_process({"relevancy": told["relevancy"]}, folder, "on")
        without = in_another_process({"relevancy": told["relevancy"]}, folder, "off")
    for method in METHODS:
        row = figures[method]
        loop = single[method] * row["calls_per_user"] * len(pools)
        row["speedup"] = round(loop / row["seconds"], 1)
    figures["prefix_cache_speedup"] = round(without["relevancy"] / with_cache["relevancy"], 2)
    if arguments.save:
        save("rerank", table_of(figures), this_command("rerank"))
    print(json.dumps({"benchmark": "rerank", "figures": figures}))


if __name__ == "__main__":
    main()
