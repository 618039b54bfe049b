"""The yes/no recommender's speed: a shared prefix against re-encoding, buckets against padding.

Prompts are of users with long histories, in the model's own chat format. Scoring: 21 candidates of
a user in one row that holds their prefix once, against 21 whole prompts in one batch; the two take
turns. Training: the same optimiser step with a question's prompts in one row and rows of like
length, against prompts one by one padded to the maximum; tokens are those of whole prompts, for
both. Loading is not counted, and the first of each is a warm-up.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gnn_scale import memory
from benchmarks.llm_throughput import dataset_of
from raysys.assets import model_path
from raysys.cluster import cores_per
from raysys.data.candidates import next_items
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.models.lora import load_base, with_lora
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer
from raysys.schema import TEST, TRAIN
from raysys.text.engine import tokenizer_of
from raysys.text.prompts import load_prompts
from raysys.text.yes_no import YesNoPrompts
from raysys.training.language_models import FinetuneSettings, YesNoTraining
from raysys.training.yes_no import pad_token

NEGATIVES, SEED = 20, 2023


def questions(
    dataset: Dataset, writer: YesNoPrompts, split: str, negatives: int, recent: int, least: int
) -> list[Question]:
    """Questions whose prefix has at least `least` tokens, by user."""
    titles = [f"title: {title}" for title in dataset.items["title"].to_pylist()]
    found = []
    users = np.arange(len(dataset.user_ids))
    for one in next_items(dataset, split, users, negatives, SEED):
        shown = one.history[max(0, len(one.history) - recent) :]
        texts = ([titles[row] for row in rows] for rows in (shown, one.items))
        prompt = writer.write(None, *texts)
        if len(prompt.prefix) >= least:
            found.append(Question(prompt.prefix, prompt.candidates, one.target))
    return found


def scoring(scorer: YesNoScorer, asked: list[Question]) -> dict[str, float]:
    """Seconds of both ways, in turn, and the largest difference of their scores."""
    shared, plain, differences = [], [], []
    for number, question in enumerate(asked):
        whole = [[*question.prefix, *tokens] for tokens in question.candidates]
        start = time.perf_counter()
        ours = scorer.shared(question.prefix, question.candidates)
        middle = time.perf_counter()
        theirs = scorer.plain(whole)
        end = time.perf_counter()
        differences.append(float((ours - theirs).abs().max()))
        print(f"scoring: {middle - start:.2f} s, {end - middle:.2f} s", file=sys.stderr, flush=True)
        if number:
            shared.append(middle - start)
            plain.append(end - middle)
    return {
        "prefix_sharing_speedup": round(sum(plain) / sum(shared), 2),
        "max_score_difference": max(differences),
        "prompt_tokens": round(
            statistics.mean(len(one.prefix) + len(one.candidates[0]) for one in asked)
        ),
        "users_per_s": round(len(shared) / sum(shared), 3),
    }


def loop(
    base: Any, answers: AnswerTokens, pad: int, asked: list[Question], most: int, *, bucketing: bool
) -> YesNoTraining:
    """A training with fresh adapters on the base model."""
    settings = FinetuneSettings(batch_size=8, bucketing=bucketing)
    model = with_lora(copy.deepcopy(base), settings.lora, SEED)
    return YesNoTraining(model, asked, [], answers, settings, pad, most)


def training(
    base: Any, answers: AnswerTokens, pad: int, asked: list[Question], most: int
) -> tuple[float, float]:
    """Tokens a second of a step with bucketing, and of one without."""
    rates = []
    for bucketing in (True, False):
        ours = loop(base, answers, pad, asked, most, bucketing=bucketing)
        for _ in range(2):  # the first warms up
            rows = [row for part in ours.passes() for one in part for row in one.alone()]
            start = time.perf_counter()
            ours.train_step()
            rate = sum(row.length + 1 for row in rows) / (time.perf_counter() - start)
            print(f"training, {bucketing=}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
        rates.append(rate)
    return rates[0], rates[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="amazon18-games")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--users", type=int, default=4, help="users that are scored")
    parser.add_argument("--max-tokens", type=int, default=2048, help="as in the paper")
    arguments = parser.parse_args()
    torch.set_num_threads(cores_per(1))
    tokenizer = tokenizer_of(arguments.model, None)
    answers, pad = AnswerTokens.of(tokenizer), pad_token(tokenizer)
    prompts = load_prompts("yes_no", "games", words=0)
    writer = YesNoPrompts(prompts, tokenizer, arguments.max_tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with tempfile.TemporaryDirectory() as folder:
            dataset = dataset_of(arguments.dataset, 3000, Path(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    long = questions(dataset, writer, TEST, NEGATIVES, recent=50, least=600)[: arguments.users]
    short = questions(dataset, writer, TRAIN, 1, recent=10, least=1)[:24]
    model = load_base(model_path(arguments.model), None, device)
    scorer = YesNoScorer(model, answers, pad)
    # Before the reference has run, whose padded batches take several times the memory.
    scorer.shared(long[0].prefix, long[0].candidates)
    loop(model, answers, pad, short, arguments.max_tokens, bucketing=True).train_step()
    peak = memory("VmHWM")
    figures: dict[str, Any] = scoring(scorer, long)
    rates = training(model, answers, pad, short, arguments.max_tokens)
    figures |= {
        "training_speedup": round(rates[0] / rates[1], 2),
        "training_tokens_per_s": round(rates[0]),
        "peak_mb": round(peak / 1e6),
    }
    print(json.dumps({"benchmark": "yes_no", "figures": figures}))


if __name__ == "__main__":
    main()
