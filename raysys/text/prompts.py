"""Prompts as data: a method's file says what is asked, a domain's file what the things are called.

`prompt_files/methods/*.toml` hold the texts of the papers with `$words` to fill in and the fields
of a reply beside them; `prompt_files/domains/*.toml` hold the words. A domain of your own is a
file of the same form, given by its path; its `[prompts.METHOD.NAME]` may replace single texts.
Item text comes from outside and is hostile: it is cleaned, and never filled into a template.
"""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any, Literal

from pydantic import Field

from raysys.errors import UserError
from raysys.settings import Settings, nearest, parse_settings
from raysys.store import fingerprint
from raysys.text.structured import FieldSpec, ReplyForm

#: A chat message as every engine takes it.
Message = dict[str, str]
#: What is shown of one item: text by name, or a text alone. None stands for "not known".
Shown = Mapping[str, Any] | str
FILES = Path(__file__).parent / "prompt_files"
#: Marks by which chat templates and tokenisers would take text for something else than text.
_MARKS = re.compile(r"<(?=[|/]?[a-zA-Z_|])|\[(?=/?INST\])", re.IGNORECASE)
#: Joiners belong to emoji and to some scripts; other invisible characters do not.
_JOINERS = "\u200c\u200d"


def clean(text: str) -> str:
    """One line of visible text: no control or direction marks, no marks of a chat template."""
    kept = "".join(
        " " if character.isspace() else character
        for character in text
        if character in _JOINERS
        or character.isspace()
        or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    return _MARKS.sub(lambda mark: f"{mark[0]} ", " ".join(kept.split()))


class PromptSpec(Settings):
    """One prompt of a method: texts with `$name` for what the domain and the settings say."""

    instruction: str = ""
    """The system message."""
    head: str = ""
    """Before the items."""
    separator: str = "\n"
    """Between items."""
    tail: str = ""
    """After the items."""
    show: Literal["json", "line", "plain"] = "json"
    """How an item is written: as a JSON object, as a numbered line `name: value; …`, or `plain`,
    the line without a number."""
    optional: dict[str, str] = Field(default_factory=dict)
    """Texts by name that stand in the instruction only where that part is shown."""
    answer: dict[str, str] = Field(default_factory=dict)
    """What the instruction says of each field of the reply."""


class MethodFile(Settings):
    """A file of `prompt_files/methods`."""

    version: int
    """Raised with each change of a text."""
    repair: str
    """What is said after a reply that could not be used; `$problem` is why."""
    reply: dict[str, FieldSpec]
    """The fields of a reply."""
    prompts: dict[str, PromptSpec]
    """The prompts by name."""


class Example(Settings):
    """A solved case, shown before the question."""

    items: tuple[dict[str, Any] | str, ...] = Field(min_length=1)
    """What is shown."""
    reply: dict[str, Any]
    """The reply."""
    previous: str = ""
    """For an update: the summary before it."""


class DomainFile(Settings):
    """A file of `prompt_files/domains`, or one of yours."""

    version: int
    """Raised with each change."""
    noun: str = Field(min_length=1)
    """What an item is called."""
    nouns: str = Field(min_length=1)
    """Several of them."""
    activity: str
    """What users do: `movie watching`."""
    history: str
    """Heading of a user's history."""
    attributes: str
    """Which attributes a profile should name."""
    examples: dict[str, dict[str, tuple[Example, ...]]] = Field(default_factory=dict)
    """Method → prompt → solved cases."""
    prompts: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Method → prompt → texts that replace the method's."""


@dataclass(frozen=True)
class Turn:
    """One question of a chat and, once there is one, its reply."""

    head: str
    items: tuple[Shown, ...]
    separator: str
    tail: str
    show: str
    reply: str | None = None
    example: bool = False

    @cached_property
    def written(self) -> list[str]:
        """The items as text; cleaning them is the slow part, so it is done once."""
        if self.show == "json":
            return [_as_json(item) for item in self.items]
        lines = [as_line(item) for item in self.items]
        if self.show == "plain":
            return lines
        return [f"{number}. {line}" for number, line in enumerate(lines, start=1)]

    def text(self) -> str:
        """The user's message."""
        return f"{self.head}{self.separator.join(self.written)}{self.tail}"


@dataclass(frozen=True)
class Prompt:
    """A chat that waits for a reply: instruction and turns, the last one open."""

    instruction: str
    turns: tuple[Turn, ...]

    def messages(self) -> list[Message]:
        """The chat as messages with role and content."""
        chat = [_message("system", self.instruction)]
        for turn in self.turns:
            chat.append(_message("user", turn.text()))
            if turn.reply is not None:
                chat.append(_message("assistant", turn.reply))
        return chat

    def answered(self, reply: str) -> Prompt:
        """The same chat with the last turn closed by `reply`."""
        last = replace(self.turns[-1], reply=reply)
        return replace(self, turns=(*self.turns[:-1], last))

    def then(self, turn: Turn) -> Prompt:
        """The same chat with a further turn."""
        return replace(self, turns=(*self.turns, turn))


@dataclass(frozen=True)
class Prompts:
    """The prompts of one method in one domain."""

    name: str
    method: MethodFile
    domain: DomainFile
    words: int
    reasoning_words: int = 0
    examples: bool = False

    @cached_property
    def fields(self) -> dict[str, FieldSpec]:
        """The fields that a reply has with these settings."""
        return {
            name: spec
            for name, spec in self.method.reply.items()
            if spec.words == "profile" or self.reasoning_words
        }

    @cached_property
    def form(self) -> ReplyForm:
        """The form that a reply must have."""
        return ReplyForm(self.fields, self.words, self.reasoning_words)

    def mark(self) -> dict[str, Any]:
        """What a manifest says of the prompts: versions, and a hash of every text."""
        domain = self.domain.model_dump(mode="json")
        solved = domain.pop("examples")
        shown = solved.get(self.name, {}) if self.examples else {}
        used = {"method": self.method.model_dump(mode="json"), "domain": domain, "examples": shown}
        return {
            "method": self.name,
            "method_version": self.method.version,
            "domain_version": self.domain.version,
            "hash": fingerprint(used),
        }

    def prompt(self, name: str, items: Sequence[Shown], *parts: str, **values: str) -> Prompt:
        """A chat that asks the prompt `name` about `items`.

        Args:
            parts: the optional texts of the instruction that apply.
            values: further `$name` of this prompt.
        """
        spec = self._spec(name)
        described = self._fill(
            ", ".join(spec.answer[field] for field in self.fields if field in spec.answer)
        )
        optional = {key: text if key in parts else "" for key, text in spec.optional.items()}
        instruction = self._fill(spec.instruction, answer=described, **optional, **values)
        before = self._examples.get(name, ())
        return Prompt(instruction, (*before, self.turn(name, items, **values)))

    def turn(self, name: str, items: Sequence[Shown], **values: str) -> Turn:
        """One question alone, to be put to an open chat."""
        spec = self._spec(name)
        head, tail = self._fill(spec.head, **values), self._fill(spec.tail, **values)
        return Turn(head, tuple(items), spec.separator, tail, spec.show)

    def repair(self, prompt: Prompt, reply: str, problem: str) -> Prompt:
        """The chat with the reply that could not be used, and the request to mend it."""
        again = self._fill(self.method.repair, problem=clean(problem))
        return prompt.answered(clean(reply)).then(Turn(again, (), "", "", "line"))

    def _spec(self, name: str) -> PromptSpec:
        spec = self.method.prompts[name]
        changed = self.domain.prompts.get(self.name, {}).get(name)
        if not changed:
            return spec
        source = f"the domain file, prompts.{self.name}.{name}"
        return parse_settings(PromptSpec, {**spec.model_dump(), **changed}, source=source)

    @cached_property
    def _examples(self) -> dict[str, tuple[Turn, ...]]:
        """The solved cases of each prompt as answered turns; none where they are not asked for."""
        solved = self.domain.examples.get(self.name, {}) if self.examples else {}
        return {
            name: tuple(
                replace(
                    self.turn(name, example.items, previous=example.previous),
                    reply=json.dumps(
                        {field: example.reply.get(field, "") for field in self.fields},
                        ensure_ascii=False,
                        separators=(",", ":"),
                    ),
                    example=True,
                )
                for example in examples
            )
            for name, examples in solved.items()
        }

    def _fill(self, text: str, **values: str) -> str:
        known = self.domain.model_dump(include={"noun", "nouns", "activity", "history"})
        try:
            return Template(text).substitute(
                known, attributes=self.domain.attributes, words=self.words, **values
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"a prompt of '{self.name}' cannot be filled in: {error}.") from None


def load_prompts(
    method: str, domain: str, words: int, reasoning_words: int = 0, *, examples: bool = False
) -> Prompts:
    """The prompts of `method` in `domain`: a name in `prompt_files/domains`, or a file.

    Raises:
        UserError: no such domain or file, an unknown key in it, or no solved cases where
            `examples` asks for them.
    """
    found = FILES / "domains" / f"{domain}.toml"
    if domain.endswith(".toml"):
        found = Path(domain)
    if not found.is_file():
        known = sorted(path.stem for path in (FILES / "domains").glob("*.toml"))
        if domain.endswith(".toml"):
            raise UserError(f"{domain}, the domain's prompts, does not exist.")
        raise UserError(
            f"no prompts for the domain '{domain}': {nearest(domain, known)} or give a .toml file."
        )
    prompts = Prompts(
        method,
        _read(MethodFile, FILES / "methods" / f"{method}.toml"),
        _read(DomainFile, found),
        words,
        reasoning_words,
        examples,
    )
    if examples and not prompts.domain.examples.get(method):
        raise UserError(f"{found} has no [[examples.{method}...]]: set examples = false.")
    return prompts


def _read(cls: type[Any], path: Path) -> Any:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be parsed: {error}") from None
    return parse_settings(cls, values, source=str(path))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [clean(str(part)) for part in value]
    return clean(str(value))


def _as_json(item: Shown) -> str:
    fields = {"text": item} if isinstance(item, str) else item
    shown = {key: _plain(value) if value else "None" for key, value in fields.items()}
    return json.dumps(shown, ensure_ascii=False)


def as_line(item: Shown) -> str:
    """An item as one line, `name: value; …`, what is not known left out."""
    if isinstance(item, str):
        return clean(item)
    known = {key: _plain(value) for key, value in item.items() if value}
    return "; ".join(
        f"{clean(key)}: {', '.join(value) if isinstance(value, list) else value}"
        for key, value in known.items()
    )
