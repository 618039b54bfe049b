"""Tokens a second of the text stages, beside bare vLLM on the same prompts in the same call.

`ours`: each stage's own code, Ray Data, budget, checking, repair and cache included, one engine for
all of them. `bare`: vLLM's offline `LLM.chat` with the same engine arguments, in a process of its
own, round by round with the very requests that `ours` sent. `single`: transformers' `generate`,
one prompt at a time. Starting up is not counted; a round counts from its first request to its last
reply, for both. Tokens are those of prompts and replies together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from benchmarks.reproduce import find_dataset
from raysys.assets import model_path
from raysys.cluster import ClusterSettings, connect, cores_per, visible_gpus
from raysys.data.dataset import Dataset
from raysys.data.import_settings import ImportSettings
from raysys.models.precision import matrix_type
from raysys.settings import parse_settings
from raysys.stages.data import import_folder
from raysys.store import read_table, write_table
from raysys.text.cache import ReplyCache
from raysys.text.conversation import converse
from raysys.text.engine import EngineSettings, SamplingSettings
from raysys.text.engine_vllm import VllmEngine
from raysys.text.generation import Generation, Request
from raysys.text.profiles import (
    ProfileSettings,
    item_prompts,
    profile_text,
    summaries_in_order,
    user_evidence,
    user_prompts,
)
from raysys.text.prompts import Prompts, load_prompts
from raysys.text.stage import Text, publish
from raysys.text.structured import Rejected
from raysys.text.summaries import SummarySettings, hierarchical, recurrent, user_histories
from raysys.text.writing import Writer

WORDS = 20
LIMIT = 1024
ENGINE = EngineSettings(max_model_len=LIMIT, cpu_quantization="int8")
SAMPLING = SamplingSettings()
#: Rounds of requests, as JSON: [chat, tokens, schema] each.
Rounds = list[list[list[Any]]]


def dataset_of(name: str, users: int, folder: Path) -> Dataset:
    """The first `users` users of a data set, split by leave-last-two."""
    source = find_dataset(name)
    table = read_table(source / "interactions.parquet")
    known = table["user_id"].unique()
    few = table.filter(pc.is_in(table["user_id"], value_set=known[:users]))
    write_table(folder / "few.parquet", few)
    values = {
        "interactions": folder / "few.parquet",
        "items": source / "items.parquet",
        "split": {"method": "leave_last_two"},
    }
    import_folder(parse_settings(ImportSettings, values, source="benchmark"), folder / "data")
    return Dataset.load(folder / "data")


@contextmanager
def warm_generation(stage: str, folder: Path) -> Iterator[Generation]:
    """The engine at work on a Ray of its own, with an empty cache and all start-up done."""
    cluster = ClusterSettings()
    engine = VllmEngine(ENGINE, cluster, SAMPLING)
    with (
        connect(cluster) as have,
        Generation(
            engine,
            ReplyCache(folder / "replies.sqlite"),
            folder / "work",
            stage=stage,
            have=have,
            block_rows=ENGINE.batch_size,
        ) as generation,
    ):
        schema = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})
        generation.ask([Request([{"role": "user", "content": "warm up"}], 8, schema)])
        engine.count(["warm up"])
        yield generation


class Recorder:
    """A `Generation` that remembers what was sent to the engine, round by round."""

    def __init__(self, generation: Generation) -> None:
        self._generation, self.engine = generation, generation.engine
        self.counters = generation.counters
        self.rounds: Rounds = []

    def ask(self, requests: list[Request], label: str = "") -> list[Any]:
        """See `Generation.ask`."""
        before = self.counters.generated
        replies = self._generation.ask(requests, label)
        if self.counters.generated > before:
            distinct = {json.dumps(one.messages): one for one in requests}
            self.rounds.append(
                [[one.messages, one.max_tokens, one.schema] for one in distinct.values()]
            )
        return replies


def stages(dataset: Dataset, recorder: Recorder, work: Path) -> dict[str, dict[str, Any]]:
    """Run every stage once; seconds, tokens and calls of each, and its rounds."""
    settings = ProfileSettings(
        domain="games",
        examples=True,
        item_words=WORDS,
        user_words=WORDS,
        reasoning_words=0,
        items_per_user=5,
    )
    unified = settings.model_copy(
        update={"method": "unified", "user_words": 2 * WORDS, "examples": False}
    )
    told = user_histories(SummarySettings(domain="games"), dataset)
    trsr = load_prompts("trsr", "games", 2 * WORDS, examples=True)
    found: dict[str, dict[str, Any]] = {}

    def writer(prompts: Prompts) -> Writer:
        return Writer(recorder, prompts, LIMIT)

    def timed(name: str, run: Callable[[], object]) -> None:
        counters, first = recorder.counters, len(recorder.rounds)
        before = (counters.prompt_tokens + counters.generated_tokens, counters.generated)
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        found[name] = {
            "seconds": seconds,
            "tokens": counters.prompt_tokens + counters.generated_tokens - before[0],
            "calls": counters.generated - before[1],
            "rounds": recorder.rounds[first:],
        }
        print(f"{name}: {seconds:.1f} s, {found[name]['calls']} calls", file=sys.stderr, flush=True)

    def profiles(prompts: Prompts) -> None:
        mine = writer(prompts)
        written = mine.write(item_prompts(settings, prompts, dataset))
        texts = {
            name: one
            if isinstance(one, Rejected)
            else Text.of(profile_text(settings.method, one.fields), [one])
            for name, one in written.items()
        }
        (work / "items").mkdir(exist_ok=True)
        publish(work / "items", texts, mine)

    items, users = settings.prompts("item"), settings.prompts("user")
    timed("rlmrec_items", lambda: profiles(items))
    summaries = summaries_in_order(work / "items", dataset.item_ids)
    shown = user_prompts(settings, users, dataset, summaries)
    timed("rlmrec_users", lambda: writer(users).write(shown))
    # The conversation is shown RLMRec's texts of the items: their own stage would be a second
    # run over all items and is no other kind of work.
    evidence = user_evidence(unified, dataset, work / "items")
    talk = unified.prompts("user")
    timed("multi_turn", lambda: converse(writer(talk), talk, evidence))
    timed("hierarchical", lambda: hierarchical(writer(trsr), trsr, told, 5, 5))
    timed("recurrent", lambda: recurrent(writer(trsr), trsr, told, 5))
    return found


def bare(path: Path, prefix_caching: bool, alone: int = 0) -> dict[str, float]:
    """Seconds of each stage's rounds with vLLM alone. Runs in a process of its own.

    Args:
        alone: if above 0, only so many requests of a stage are asked, one after the other, and
            the seconds are those of one.
    """
    on_gpu = visible_gpus() > 0
    settings = ENGINE.model_copy(update={"prefix_caching": prefix_caching})
    engine = VllmEngine(settings, ClusterSettings(), SAMPLING)
    os.environ.update(engine.environment(on_gpu))
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(model=engine.model(on_gpu), **engine.arguments(on_gpu))

    def chat(requests: list[list[Any]]) -> float:
        parameters = [
            SamplingParams(
                **SAMPLING.model_dump(),
                max_tokens=most,
                structured_outputs=StructuredOutputsParams(json=schema),
            )
            for _, most, schema in requests
        ]
        start = time.perf_counter()
        llm.chat([messages for messages, _, _ in requests], parameters, use_tqdm=False)
        return time.perf_counter() - start

    told: dict[str, Rounds] = json.loads(path.read_text())
    chat([[[{"role": "user", "content": "warm up"}], 8, next(iter(told.values()))[0][0][2]]])
    if alone:
        few = {name: list(chain(*rounds))[:alone] for name, rounds in told.items()}
        return {name: sum(chat([one]) for one in asked) / len(asked) for name, asked in few.items()}
    return {name: sum(chat(requests) for requests in rounds) for name, rounds in told.items()}


def in_another_process(
    told: dict[str, Rounds], folder: Path, prefix: str, alone: int = 0
) -> dict[str, float]:
    """`bare` in a process of its own."""
    path = folder / "rounds.json"
    path.write_text(json.dumps(told))
    command = [sys.executable, "-m", "benchmarks.llm_throughput", "--bare", str(path)]
    command += ["--prefix", prefix, "--alone", str(alone)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def single(rounds: Rounds, prompts: int) -> float:
    """Seconds a prompt of a plain loop: tokenise, generate greedily, one chat after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(cores_per(1))
    on_gpu = visible_gpus() > 0
    device = "cuda" if on_gpu else "cpu"
    dtype = matrix_type(torch.device(device))
    path = model_path(ENGINE.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()

    def answer(messages: list[dict[str, str]], length: int) -> None:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        model.generate(**inputs, max_new_tokens=length, do_sample=False)

    chats = [messages for messages, _, _ in rounds[0][: prompts + 1]]
    answer(chats[0], WORDS)  # warms up
    start = time.perf_counter()
    for chat in chats[1:]:
        answer(chat, WORDS)
    return (time.perf_counter() - start) / len(chats[1:])


def main() -> None:
    """Run all and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="amazon18-games")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--single", type=int, default=20, help="prompts for the plain loop")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", default="on", help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.bare, arguments.prefix == "on", arguments.alone)))
        return
    figures: dict[str, Any] = {"users": arguments.users}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = dataset_of(arguments.dataset, arguments.users, folder)
        with warm_generation("llm_throughput", folder) as generation:
            ours = stages(dataset, Recorder(generation), folder)
            again = stages(dataset, Recorder(generation), folder)
        told = {stage: row["rounds"] for stage, row in ours.items()}
        alone = in_another_process(told, folder, "on")
        first = next(iter(told))
        without = in_another_process({first: told[first]}, folder, "off")
    for stage, row in ours.items():
        units = len(dataset.item_ids) if stage == first else arguments.users
        figures[stage] = {
            "share_of_bare_vllm": round(alone[stage] / row["seconds"], 3),
            "tokens_per_s": round(row["tokens"] / row["seconds"], 1),
            "calls_per_user": round(row["calls"] / units, 2),
        }
    took = ours[first]["seconds"] / ours[first]["calls"]
    totals = [sum(row["seconds"] for row in run.values()) for run in (again, ours)]
    figures |= {
        "cached_rerun_share": round(totals[0] / totals[1], 4),
        "prefix_cache_speedup": round(without[first] / alone[first], 2),
        "share_of_bare_vllm": figures[first]["share_of_bare_vllm"],
        "tokens_per_s": figures[first]["tokens_per_s"],
        "speedup_over_single_prompt": round(single(told[first], arguments.single) / took, 1),
    }
    print(json.dumps({"benchmark": "llm_throughput", "figures": figures}))


if __name__ == "__main__":
    main()
