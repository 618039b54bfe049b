"""From prompts to checked replies: cut to the budget, ask, check, ask for a repair once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from raysys.text.budget import Fitted, fit
from raysys.text.cache import Reply
from raysys.text.generation import Asker, Counters, Request
from raysys.text.prompts import Prompt, Prompts
from raysys.text.quality import is_copied
from raysys.text.structured import ENGINE_ERROR, Fields, Form, Rejected

#: How much of a reply that could not be used is shown again.
_SHOWN_AGAIN = 2000


@dataclass(frozen=True)
class Written:
    """A reply in form, and what it took: tokens of all calls, items cut from the prompt."""

    fields: Fields
    prompt: Prompt
    text: str
    repaired: bool
    copied: bool
    calls: int
    cut: int
    prompt_tokens: int
    generated_tokens: int


@dataclass
class WritingCounts:
    """What happened over all rounds of a stage."""

    replies: int = 0
    valid_at_once: int = 0
    repaired: int = 0
    cut_prompts: int = 0
    cut_items: int = 0
    problems: Counter[str] = field(default_factory=Counter)


class Writer:
    """Lets one engine write: texts of the prompts' form, or of a form for each prompt."""

    def __init__(self, asker: Asker, prompts: Prompts, limit: int) -> None:
        self.counts = WritingCounts()
        self._asker, self._prompts = asker, prompts
        self._limit = limit

    @property
    def asked(self) -> Counters:
        """What the engine was asked so far."""
        return self._asker.counters

    def write(
        self,
        prompts: Mapping[str, Prompt],
        label: str = "",
        forms: Mapping[str, Form] | None = None,
        *,
        whole: bool = False,
    ) -> dict[str, Written | Rejected]:
        """One reply a prompt, by the ids of the prompts.

        Args:
            forms: the form of each prompt's reply; the prompts' own if not given.
            whole: what would have to be cut is not asked.
        """
        counts = self.counts
        forms = dict.fromkeys(prompts, self._prompts.form) if forms is None else forms
        if not prompts:
            return {}
        limit = self._limit - max(form.max_tokens for form in forms.values())
        results: dict[str, Written | Rejected] = {}
        fitted: dict[str, Fitted] = {}
        count = self._asker.engine.count
        cut = fit(list(prompts.values()), count, limit)
        for name, found in zip(prompts, cut, strict=True):
            if found is None:
                results[name] = Rejected("too_long", "the instruction alone is over the limit")
                continue
            if whole and found.cut:
                results[name] = Rejected("too_long", "it does not fit into engine.max_model_len")
                continue
            fitted[name] = found
            counts.cut_prompts += found.cut > 0
            counts.cut_items += found.cut
        replies = self._ask({name: found.prompt for name, found in fitted.items()}, forms, label)
        again: dict[str, Prompt] = {}
        for name, reply in replies.items():
            counts.replies += 1
            parsed = _parse(reply, forms[name])
            if not isinstance(parsed, Rejected):
                counts.valid_at_once += 1
                results[name] = self._written(fitted[name], parsed, reply)
                continue
            counts.problems[parsed.reason] += 1
            results[name] = parsed
            if not reply.error:
                shown = reply.text[:_SHOWN_AGAIN]
                again[name] = self._prompts.repair(fitted[name].prompt, shown, parsed.detail)
        # Cut, it would ask for the repair of something that is no longer shown.
        repairs = {
            name: kept.prompt
            for name, kept in zip(again, fit(list(again.values()), count, limit), strict=True)
            if kept and not kept.cut
        }
        for name, reply in self._ask(repairs, forms, f"{label} repair".strip()).items():
            parsed = _parse(reply, forms[name])
            if isinstance(parsed, Rejected):
                results[name] = parsed
            else:
                counts.repaired += 1
                results[name] = self._written(fitted[name], parsed, reply, replies[name])
        return {name: results[name] for name in prompts}

    def _ask(
        self, prompts: dict[str, Prompt], forms: Mapping[str, Form], label: str
    ) -> dict[str, Reply]:
        if not prompts:
            return {}
        # Most prompts share one form, whose schema is text that takes a while to make.
        told = {
            id(form): (form.max_tokens, form.schema(), form.longest())
            for form in set(forms.values())
        }
        requests = [
            Request(prompt.messages(), *told[id(forms[name])]) for name, prompt in prompts.items()
        ]
        return dict(zip(prompts, self._asker.ask(requests, label), strict=True))

    def _written(
        self, fitted: Fitted, fields: Fields, reply: Reply, before: Reply | None = None
    ) -> Written:
        both = [reply] if before is None else [before, reply]
        return Written(
            fields,
            fitted.prompt,
            reply.text,
            before is not None,
            is_copied(_all_words(fields), fitted.prompt.turns[-1].text()),
            len(both),
            fitted.cut,
            sum(one.prompt_tokens for one in both),
            sum(one.generated_tokens for one in both),
        )


def _parse(reply: Reply, form: Form) -> Fields | Rejected:
    if reply.error:
        return Rejected(ENGINE_ERROR, reply.error[:500])
    return form.parse(reply.text)


def _all_words(fields: Fields) -> str:
    return " ".join(
        value if isinstance(value, str) else " ".join(map(str, value)) for value in fields.values()
    )
