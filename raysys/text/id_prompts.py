"""Prompts made of id words: each user is `user_12`, each item `item_34`, whatever their real ids.

ELMRec §3.1, §4.2. The numbers are ours. Given in the order in which a data set's file names the
items, as the released code does, neighbouring numbers share tokens with the items that users take
next, test items included; so they follow train alone, or chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.models.elmrec import EXPLANATION, NO_LABEL, TASKS, TaskBatch
from raysys.schema import TRAIN
from raysys.settings import Settings, load_settings
from raysys.text.prompts import FILES, clean

_PLACES = re.compile(r"(\{user\}|\{items\})")
Numbering = Literal["train_order", "random"]


class IdTemplates(Settings):
    """A file of templates, such as `prompt_files/elmrec.toml`."""

    version: int
    """Raised with each change of a text."""
    direct: tuple[str, ...] = Field(min_length=1)
    """`{user}` chooses among `{items}`."""
    sequential: tuple[str, ...] = Field(min_length=1)
    """What follows `{items}` of `{user}`."""
    explanation: tuple[str, ...] = Field(min_length=1)
    """Why `{user}` takes `{items}`, which is one item."""


def load_templates(path: Path | None) -> IdTemplates:
    """The templates of a file; None: those that come with raysys.

    Raises:
        UserError: a text names neither `{user}` nor `{items}`, or something else in braces.
    """
    path = path or FILES / "elmrec.toml"
    found = load_settings(IdTemplates, path)
    for task in TASKS:
        for text in getattr(found, task):
            rest = _PLACES.sub("", text)
            if "{user}" not in text or "{items}" not in text or "{" in rest or "}" in rest:
                raise UserError(
                    f"{path}, {task}: '{text}' must hold {{user}} and {{items}}, "
                    "and nothing else in braces."
                )
    return found


def id_numbers(dataset: Dataset, how: Numbering, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 1 for users (U,) and items (I,), a permutation each.

    `train_order` counts items as they appear in the users' train interactions, so that items taken
    together get near numbers and share tokens; what is not in train comes last. Users by chance
    with `random`, else by row.
    """
    users, items = dataset.shape
    if how == "random":
        rng = np.random.default_rng([seed, users, items])
        return rng.permutation(users) + 1, rng.permutation(items) + 1
    order = np.concatenate([dataset.pairs(TRAIN)[1], np.arange(items)])
    _, first = np.unique(order, return_index=True)
    numbers = np.empty(items, np.int64)
    numbers[np.argsort(first)] = np.arange(1, items + 1)
    return np.arange(1, users + 1), numbers


@dataclass(frozen=True)
class Row:
    """What one row of a batch says.

    Attributes:
        user: user row.
        items: item rows that are shown, in order; may be empty.
        item: the item that is taught, or explained.
        text: an explanation's tokens.
    """

    user: int
    items: np.ndarray
    item: int
    text: np.ndarray | None = None


class IdPrompts:
    """Writes rows as tokens.

    Args:
        tokenizer: of the language model.
        templates: see `IdTemplates`.
        numbers: of users (U,) and items (I,).

    Attributes:
        items: (I, T) int64 tokens of each item as an answer, its end mark last, filled up with −1.

    Raises:
        UserError: the tokeniser cannot write an id, or writes two of them alike.
    """

    def __init__(
        self, tokenizer: Any, templates: IdTemplates, numbers: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self._tokenizer = tokenizer
        self._users_count = len(numbers[0])
        self._pad, self._end = int(tokenizer.pad_token_id or 0), int(tokenizer.eos_token_id)
        self._words = [
            self._tokens([f"{kind}_{number}" for number in found.tolist()])
            for kind, found in zip(("user", "item"), numbers, strict=True)
        ]
        self.items = _filled([[*tokens, self._end] for tokens in self._words[1]], -1)
        if len(np.unique(self.items, axis=0)) < len(self.items):
            raise UserError(
                "this tokeniser writes two items with the same tokens: choose another elmrec.model."
            )
        self._templates = {
            task: [self._pieces(text) for text in getattr(templates, task)] for task in TASKS
        }

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        for text, tokens in zip(texts, found, strict=True):
            if not tokens or unknown in tokens:
                raise UserError(
                    f"this model's tokeniser cannot write '{text}': choose another elmrec.model."
                )
        return found

    def _pieces(self, text: str) -> list[str | list[int]]:
        """Places and tokens in turn; the tokens of a text are those it has by itself."""
        parts = [part for part in _PLACES.split(text) if part.strip()]
        return [
            part if _PLACES.fullmatch(part) else self._tokens([part.strip()])[0] for part in parts
        ]

    def explanation(self, text: str, most: int) -> np.ndarray:
        """A text's tokens with its end mark, cut to `most`."""
        tokens = self._tokenizer(clean(text), add_special_tokens=False)["input_ids"]
        return np.array([*tokens[: most - 1], self._end], np.int64)

    def text(self, tokens: np.ndarray) -> str:
        """The text of written tokens."""
        found: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return found.strip()

    def batch(
        self, task: str, rows: Sequence[Row], rng: np.random.Generator | None, shuffled: bool
    ) -> TaskBatch:
        """Rows of one task as tensors.

        Args:
            rng: draws the template of each row, and the order where it is shuffled; None: the
                first template, and an order that depends on the row alone.
            shuffled: whether words are counted in a random order (Table 6, "Random").
        """
        written = [self._write(task, row, rng, shuffled) for row in rows]
        tokens, nodes, order, word_nodes, word_order = (
            _filled([row[place] for row in written], fill)
            for place, fill in enumerate((-1, 0, 0, 0, 0))
        )
        labels = [self._labels(row.item) if row.text is None else row.text.tolist() for row in rows]
        return TaskBatch(
            task,
            torch.from_numpy(np.where(tokens < 0, self._pad, tokens)),
            torch.from_numpy(tokens >= 0),
            torch.from_numpy(nodes),
            torch.from_numpy(order),
            torch.from_numpy(word_nodes),
            torch.from_numpy(word_order),
            torch.tensor([row.user for row in rows]),
            torch.tensor([row.item for row in rows]),
            torch.from_numpy(_filled(labels, NO_LABEL)),
        )

    def _labels(self, item: int) -> list[int]:
        return [*self._words[1][item], self._end]

    def _write(
        self, task: str, row: Row, rng: np.random.Generator | None, shuffled: bool
    ) -> tuple[list[int], ...]:
        items = np.array([row.item]) if task == EXPLANATION else row.items
        choices = self._templates[task]
        pieces = choices[0 if rng is None else int(rng.integers(len(choices)))]
        places = np.arange(1, 2 + len(items))
        if shuffled:
            draw = np.random.default_rng([row.user, len(items)]) if rng is None else rng
            places = draw.permutation(places)
        spans = {
            "{user}": [(row.user + 1, int(places[0]), self._words[0][row.user])],
            "{items}": [
                (self._users_count + item + 1, int(place), self._words[1][item])
                for item, place in zip(items.tolist(), places[1:], strict=True)
            ],
        }
        tokens: list[int] = []
        nodes: list[int] = []
        order: list[int] = []
        words: list[tuple[int, int]] = []
        for piece in pieces:
            for node, place, found in spans[piece] if isinstance(piece, str) else [(0, 0, piece)]:
                tokens += found
                nodes += [node] * len(found)
                order += [place] * len(found)
                words += [(node, place)] if node else []
        tokens.append(self._end)
        return tokens, [*nodes, 0], [*order, 0], [n for n, _ in words], [p for _, p in words]


def _filled(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    """(n, longest) int64."""
    table = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
