"""Tokens a second of the profile stage, beside bare vLLM and a one-prompt-at-a-time loop.

All three answer the quick start's own item prompts, in one call of this program:

1. `ours`: the profile stage, Ray Data and all, writing its part files;
2. `bare`: vLLM's offline `LLM.chat` with the same engine arguments, all prompts at once;
3. `single`: transformers' `generate`, one prompt at a time, full weights, as many tokens for
   each prompt as `ours` wrote.

Starting up is not counted. For 1 and 2 the rate is taken while the engine is full: over the
rows between the 15th and the 85th percentile by the time they were finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.assets import model_path
from raysys.cluster import connect, cores_per, visible_gpus
from raysys.data.dataset import Dataset
from raysys.models.align import fast_bfloat16
from raysys.schema import GENERATED_TOKENS
from raysys.settings import load_settings
from raysys.stages.context import RunSettings
from raysys.stages.data import import_folder
from raysys.store import read_table
from raysys.text.engine import ERROR, MESSAGES, VllmEngine
from raysys.text.generation import PARTS, generate
from raysys.text.profiles import item_requests, profile_engine

STEADY = (0.15, 0.85)


def steady_rate(finished: np.ndarray, tokens: np.ndarray) -> float:
    """Tokens a second while the engine was full: the slope of tokens finished over time.

    A fitted line, because rows finish in waves and a difference of two points would
    depend on where in a wave they fall.

    Args:
        finished: (n,) seconds at which each row was finished.
        tokens: (n,) tokens of each row.
    """
    order = np.argsort(finished, kind="stable")
    times, done = finished[order], np.cumsum(tokens[order])
    first, last = (int(share * len(order)) for share in STEADY)
    slope, _ = np.polyfit(times[first:last] - times[first], done[first:last], deg=1)
    return float(slope)


def ours(
    requests: pa.Table, engine: VllmEngine, settings: RunSettings, work: Path
) -> tuple[float, list[int]]:
    """Steady rate of the profile stage, and the tokens of each reply.

    A part file's time is when its rows were finished.
    """
    with connect(settings.cluster) as have:
        replies = generate(
            requests,
            engine,
            work,
            stage="llm_throughput",
            have=have,
            block_rows=settings.profiles.engine.batch_size,
        )
    failed = [error for error in replies[ERROR].to_pylist() if error]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed, the first with: {failed[0]}")
    finished, tokens = [], []
    for part in (work / PARTS).glob("*.parquet"):
        counts = read_table(part)[GENERATED_TOKENS].to_pylist()
        finished += [part.stat().st_mtime] * len(counts)
        tokens += counts
    rate = steady_rate(np.array(finished), np.array(tokens))
    return rate, replies[GENERATED_TOKENS].to_pylist()


def bare(requests: pa.Table, engine: VllmEngine, on_gpu: bool) -> float:
    """Steady rate of vLLM alone on the same chats with the same engine arguments."""
    os.environ.update(engine.environment(on_gpu))
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    # Request times are kept only with statistics on.
    arguments = {**engine.arguments(on_gpu), "disable_log_stats": False}
    llm = LLM(model=engine.model(on_gpu), **arguments)
    parameters = dict(engine.sampling_parameters)
    structured = StructuredOutputsParams(**parameters.pop("structured_outputs"))
    outputs = llm.chat(
        [json.loads(chat) for chat in requests[MESSAGES].to_pylist()],
        SamplingParams(**parameters, structured_outputs=structured),
        use_tqdm=False,
    )
    return steady_rate(
        np.array([output.metrics.last_token_ts for output in outputs]),
        np.array([len(output.outputs[0].token_ids) for output in outputs]),
    )


def single(requests: pa.Table, model: str, lengths: list[int], on_gpu: bool) -> float:
    """Rate of a plain loop: tokenise, generate greedily, one chat after the other.

    Args:
        lengths: tokens to write for each chat; there are as many prompts as lengths.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(cores_per(1))
    dtype = torch.bfloat16 if on_gpu or fast_bfloat16() else torch.float32
    device = "cuda" if on_gpu else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()

    def answer(chat: str, length: int) -> None:
        inputs: Any = tokenizer.apply_chat_template(
            json.loads(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        causal.generate(**inputs, min_new_tokens=length, max_new_tokens=length, do_sample=False)

    chats = requests[MESSAGES].to_pylist()
    answer(chats[0], lengths[0])  # warms up
    start = time.perf_counter()
    for chat, length in zip(chats, lengths, strict=False):
        answer(chat, length)
    return sum(lengths) / (time.perf_counter() - start)


def main() -> None:
    """Run all three and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--prompts", type=int, default=1000, help="prompts for ours and bare")
    parser.add_argument("--single", type=int, default=20, help="prompts for the plain loop")
    parser.add_argument("overrides", nargs="*", help="key=value, as for raysys run")
    arguments = parser.parse_args()
    settings = load_settings(RunSettings, arguments.config, arguments.overrides)
    profiles, on_gpu = settings.profiles, visible_gpus() > 0
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder, "data"), Path(folder, "work")
        work.mkdir()
        import_folder(settings.data, data)
        requests = item_requests(profiles, Dataset.load(data, name="quickstart"))
        requests = requests.slice(0, arguments.prompts)
        engine = profile_engine(profiles, settings.cluster, profiles.item_words)
        our_rate, lengths = ours(requests, engine, settings, work)
    print(f"ours   {our_rate:8.1f} tokens/s", file=sys.stderr)
    bare_rate = bare(requests, engine, on_gpu)
    print(f"bare   {bare_rate:8.1f} tokens/s", file=sys.stderr)
    single_rate = single(
        requests,
        model_path(profiles.engine.model),
        lengths[: arguments.single],
        on_gpu,
    )
    print(f"single {single_rate:8.1f} tokens/s", file=sys.stderr)
    figures = {
        "share_of_bare_vllm": round(our_rate / bare_rate, 3),
        "speedup_over_single_prompt": round(our_rate / single_rate, 1),
        "tokens_per_s": round(our_rate, 1),
        "bare_tokens_per_s": round(bare_rate, 1),
        "single_prompt_tokens_per_s": round(single_rate, 1),
        "prompts": requests.num_rows,
    }
    print(json.dumps({"benchmark": "llm_throughput", "figures": figures}))


if __name__ == "__main__":
    main()
