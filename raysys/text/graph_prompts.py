"""Prompts of the graph-attentive language model as tokens: words, users and items.

"LLM-Enhanced User-Item Interactions", sections 3.3.2 and 3.4.1. A token below V is one of the
language model's; V + n is node n of the graph: users 0..U−1, items U..U+I−1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.errors import UserError
from raysys.settings import Settings, load_settings
from raysys.text.prompts import FILES, clean

#: What stands in braces in each template.
_PLACES = {
    "attribute": ("{name}", "{item}", "{text}"),
    "review": ("{user}", "{name}", "{item}", "{text}"),
    "shared": ("{items}", "{name}", "{text}"),
    "event": ("{user}", "{items}"),
    "trigger": (),
}


class GraphTemplates(Settings):
    """A file of templates, such as `prompt_files/graph_lm.toml`."""

    version: int
    """Raised with each change of a text."""
    attribute: str
    """With {name}, {item} and {text}."""
    review: str
    """With {user}, {name}, {item} and {text}."""
    shared: str
    """With {items}, {name} and {text}."""
    event: str
    """With {user} and {items}; the history of a question too."""
    trigger: str
    """After the history of a question."""


def load_graph_templates(path: Path | None) -> GraphTemplates:
    """The templates of a file; None: those that come with raysys.

    Raises:
        UserError: a text lacks a place, or has another one in braces.
    """
    path = path or FILES / "graph_lm.toml"
    found = load_settings(GraphTemplates, path)
    for name, places in _PLACES.items():
        text = getattr(found, name)
        if sorted(re.findall(r"\{.*?\}", text)) != sorted(places):
            wanted = ", ".join(places) or "nothing in braces"
            raise UserError(f"{path}, {name}: '{text}' must hold {wanted}, each once.")
    return found


class GraphPrompts:
    """Writes prompts as tokens.

    Args:
        tokenizer: of the language model.
        words: V, the rows of its embeddings.
        users: U.
        max_tokens: the model's context; lists of items are cut to fit, what follows never is.

    Raises:
        UserError: the templates alone do not fit into `max_tokens`.
    """

    def __init__(
        self, tokenizer: Any, words: int, users: int, templates: GraphTemplates, max_tokens: int
    ) -> None:
        self._tokenizer, self.words, self.users, self._most = tokenizer, words, users, max_tokens
        self._pieces = {name: self._split(getattr(templates, name)) for name in _PLACES}
        fixed = sum(len(one) for one in self._pieces["event"] if not isinstance(one, str))
        #: Items of a history with its trigger, at most.
        self.longest_history = max_tokens - fixed - 1 - len(self.trigger)
        if self.longest_history < 1:
            raise UserError(
                f"graph_lm.max_tokens {max_tokens} leaves no room for a single item in a prompt."
            )

    @property
    def trigger(self) -> list[int]:
        """The tokens after the history of a question."""
        return self._write("trigger", {})

    def history(self, user: int, items: Sequence[int] | np.ndarray) -> list[int]:
        """A user and some items, the latest as far as they fit beside a trigger."""
        kept = list(items)[-self.longest_history :]
        return self._write("event", {"{user}": [self.words + user], "{items}": self._items(kept)})

    def prompt(
        self, family: str, user: int, items: Sequence[int], name: str, text: str, text_tokens: int
    ) -> list[int]:
        """A crowd contextual prompt, at most `max_tokens` long.

        Args:
            text_tokens: what is longer of the text is cut.
        """
        # A token is a few letters: the rest of a long text need not be read.
        tokens = self.text(text[: 20 * text_tokens])[:text_tokens]
        spans = {"{name}": self.text(name.replace("_", " ")), "{text}": tokens}
        spans["{user}"] = [self.words + user]
        rest = len(self._write(family, spans | {"{item}": [], "{items}": []}))
        kept = self._items(items)[: max(1, self._most - rest)]
        return self._write(family, spans | {"{item}": kept, "{items}": kept})[: self._most]

    def text(self, text: str, before: str = " ") -> list[int]:
        """The tokens of a text inside a prompt; none of them is a mark of the model's own."""
        found: list[int] = self._tokenizer(
            before + clean(text), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return found

    def _items(self, items: Iterable[int]) -> list[int]:
        return [self.words + self.users + int(item) for item in items]

    def _split(self, text: str) -> list[str | list[int]]:
        """Places as strings and the texts between them as tokens."""
        parts = [part for part in re.split(r"(\{\w+\})", text) if part.strip()]
        return [
            part if part[0] == "{" else self.text(part, " " if part[0] == " " else "")
            for part in parts
        ]

    def _write(self, name: str, spans: dict[str, list[int]]) -> list[int]:
        pieces = (spans[one] if isinstance(one, str) else one for one in self._pieces[name])
        return [token for piece in pieces for token in piece]
