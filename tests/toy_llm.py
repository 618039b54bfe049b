"""A language model that answers by a function, in this process: for tests alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from raysys.text.cache import Reply
from raysys.text.generation import Counters, Request
from raysys.text.prompts import Prompts
from raysys.text.writing import Writer


class Words:
    """An engine that counts words."""

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text.split()) for text in texts], np.int64)


class Script:
    """In place of a `Generation`: `answer` maps a request's messages to the reply's text."""

    def __init__(self, answer: Callable[[list[dict[str, str]]], str | Reply]) -> None:
        self.engine, self.counters = Words(), Counters()
        self.rounds: list[list[Request]] = []
        self._answer = answer

    def ask(self, requests: Sequence[Request], label: str = "") -> list[Reply]:
        self.rounds.append(list(requests))
        found = []
        for request in requests:
            reply = self._answer(request.messages)
            found.append(reply if isinstance(reply, Reply) else Reply(reply, "", 10, 5))
        return found


def writer(script: Script, prompts: Prompts, limit: int = 100_000) -> Writer:
    """A writer whose engine is the script."""
    return Writer(script, prompts, limit)


def last(messages: list[dict[str, str]]) -> str:
    """The open question of a chat."""
    return messages[-1]["content"]


def as_json(**fields) -> str:
    return json.dumps(fields)
