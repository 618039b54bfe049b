"""The engine's process is killed under its rows: they are asked again, then given up alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from raysys.cluster import Pool, Resources, StagePlan
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.text.cache import ReplyCache
from raysys.text.engine import ERROR, KEY, MESSAGES, REPLY
from raysys.text.generation import Generation, Request


class Mortal:
    """Dies of `poison` and of any `plague` every time, and of `stumble` the first time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def identity(self):
        return {"model": "mortal"}

    def count(self, texts):
        return np.ones(len(texts), np.int64)

    def plan(self, stage: str, have: Resources) -> StagePlan:
        return StagePlan(stage, (Pool("mortal", 1, 0.1),))

    def replies(self, requests):
        folder = self._folder

        def answer(row):
            text = json.loads(row[MESSAGES])[0]["content"]
            stumbled = folder / "stumbled"
            deadly = text == "poison" or text.startswith("plague")
            if row[KEY] and (deadly or (text == "stumble" and not stumbled.exists())):
                if text == "stumble":
                    stumbled.touch()
                with (folder / "deaths").open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return {
                KEY: row[KEY],
                REPLY: f"reply to {text}",
                ERROR: "",
                PROMPT_TOKENS: 1,
                GENERATED_TOKENS: 1,
            }

        return requests.map(answer, num_cpus=1, max_retries=1)


@pytest.mark.ray
def test_a_poisonous_row_is_given_up_and_no_other(tmp_path, local_ray):
    names = [f"item {row}" for row in range(10)]
    names[3], names[8] = "stumble", "poison"
    requests = [Request([{"role": "user", "content": name}], 9, "{}") for name in names]
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with Generation(
        Mortal(tmp_path), cache, tmp_path / "work", stage="toy", have=local_ray, block_rows=2
    ) as generation:
        replies = dict(zip(names, generation.ask(requests), strict=True))
    assert len((tmp_path / "deaths").read_text()) >= 3, "nothing was killed"
    block = {"poison", "item 9"}
    for name in names:
        if name in block:
            continue
        assert replies[name].text == f"reply to {name}", replies[name]
    assert "the engine died" in replies["poison"].error
    assert generation.counters.failed <= len(block)


@pytest.mark.ray
def test_an_engine_that_dies_of_everything_is_given_up(tmp_path, local_ray):
    requests = [Request([{"role": "user", "content": f"plague {n}"}], 9, "{}") for n in range(20)]
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with (
        Generation(
            Mortal(tmp_path), cache, tmp_path / "work", stage="toy", have=local_ray, block_rows=2
        ) as generation,
        pytest.raises(RuntimeError, match="toy: the engine died 3 times without a reply between"),
    ):
        generation.ask(requests)
