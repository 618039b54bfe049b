"""Rerank and explain a caller's list while they wait; late or broken, its order stays.

The same methods, prompts, forms and bounds as `raysys rerank`; End-to-End Personalization §2.3.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysys.observe import get_logger
from raysys.ranking.explain import Claim, ClaimStream, checked
from raysys.ranking.fuse import fuse, order_of
from raysys.ranking.rerank import Answer, MethodSettings, Question, method_of
from raysys.serving.limit import AdaptiveLimit
from raysys.serving.shelf import Found, Shelf
from raysys.stages.rerank import CHOICE_FILE, RERANK, Choice
from raysys.stages.told import Told
from raysys.store import read_json
from raysys.text.choices import CHOICE, ChoiceForm
from raysys.text.context import Context, item_lines
from raysys.text.engine import ERROR, KEY, MAX_TOKENS, MESSAGES, REPLY, SCHEMA
from raysys.text.explain import CLAIMS, ClaimsForm, explain_prompt, template_of
from raysys.text.online import Online, UnansweredError
from raysys.text.prompts import Prompt
from raysys.text.rerank import Pool, RerankSettings, question_prompt
from raysys.text.structured import ENGINE_ERROR, Fields, Form, Rejected
from raysys.training.loop import mixed_seed

logger = get_logger(__name__)
#: Characters of a reply that are shown again when it has to be mended.
_SHOWN_AGAIN = 2000


class UnusableError(Exception):
    """The language model had no answer that can be used."""


@dataclass(frozen=True)
class Ordered:
    """A list in its final order.

    Attributes:
        found: the list.
        graph_ranks: (k,) places before, from 1; none: it is the retrieval's order.
        reason: why it is degraded; none: it is not.
    """

    found: Found
    graph_ranks: list[int] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Reasons:
    """Reasons for one item: some as soon as they are written, at last all that are kept.

    Attributes:
        row: the item.
        claims: reasons; each cites keys of `evidence`.
        evidence: what was given to the model.
        source: `llm` or `template` once they are all there; none: more may come.
    """

    row: int
    claims: list[Claim]
    evidence: dict[str, str]
    source: str | None


class Reranker:
    """Reranks and explains for one shelf.

    Args:
        settings: how.
        shelf: the model.
        run: its run: user profiles and what was chosen on validation are read there.
        model: the language model.
        limit: lists that it is asked for at once; shared with the reranker before this one.
    """

    def __init__(
        self,
        settings: RerankSettings,
        shelf: Shelf,
        run: Path,
        model: Online,
        limit: AdaptiveLimit,
    ) -> None:
        profiles = run / "user_profiles"
        self._settings, self._shelf, self._model = settings, shelf, model
        self._limit = limit
        self._prompts = settings.prompts()
        self._told = Told(settings, shelf.dataset, profiles if profiles.is_dir() else None)
        self._choice = Choice(settings.weight, settings.below)
        if (run / RERANK / CHOICE_FILE).is_file():
            found = read_json(run / RERANK / CHOICE_FILE)
            self._choice = Choice(float(found["weight"]), found["below"])

    @property
    def pool(self) -> int:
        """Candidates that are reranked."""
        return self._settings.pool

    @property
    def explained(self) -> int:
        """First items of a list that get reasons with it."""
        return self._settings.explain_items

    def wants(self, user_id: str | None, history: list[str], mode: str) -> bool:
        """Whether a list is to be reranked: with `auto` where that helped on validation."""
        if mode != "auto":
            return mode != "off"
        row = self._shelf.user_row(user_id)
        likes = len(history) if row is None else len(self._told.likes[row])
        return self._choice.reaches(likes)

    async def order(
        self, user_id: str | None, history: list[str], found: Found, mode: str, seconds: float
    ) -> Ordered:
        """The pool in its final order; never later than `seconds`, and never an error.

        Where the model is asked for as many lists as it answers in time, it is not asked.

        Args:
            found: the pool in the retrieval's order.
            mode: `auto`, or a method.
        """
        method = self._settings.method
        if mode != "auto":
            method = method.model_copy(update={"name": mode})
        place = self._limit.enter()
        if place is None:
            return Ordered(found, reason="the language model is busy")
        in_time = True
        try:
            async with asyncio.timeout(seconds):
                scores = await self._scores(user_id, history, found, method)
        except TimeoutError:
            in_time = False
            return Ordered(found, reason="the language model took too long")
        except UnusableError as problem:
            return Ordered(found, reason=str(problem))
        except Exception as problem:
            logger.exception("reranking failed", exc_info=problem)
            return Ordered(found, reason=f"the language model failed ({type(problem).__name__})")
        finally:
            self._limit.leave(place, in_time=in_time)
        weight = self._choice.weight or self._settings.weight
        fused = fuse(scores, found.scores.astype(np.float64), weight)
        order = order_of(fused, self._settings.max_rank_shift)
        listed = Found(found.items[order], fused[order].astype(np.float32), found.source)
        return Ordered(listed, (order + 1).tolist())

    async def _scores(
        self, user_id: str | None, history: list[str], found: Found, method: MethodSettings
    ) -> np.ndarray:
        items = [self._told.items[row] for row in found.items.tolist()]
        row, seed = self._shelf.user_row(user_id), self._settings.seed
        # A known user's pool is shuffled as `raysys rerank` shuffles it: the same list in the end.
        seed = seed if row is None else mixed_seed(seed, row)
        pool = Pool(self._context(user_id, history), items, seed)
        asking = method_of(method, len(items), pool.seed)
        answers: list[Answer] | None = None
        while True:
            try:
                questions = next(asking) if answers is None else asking.send(answers)
            except StopIteration as done:
                scores: np.ndarray = done.value
                return scores
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer(pool, one)) for one in questions]
            answers = [task.result() for task in tasks]
            if any(answer is None for answer in answers):
                raise UnusableError("the language model's reply could not be used")

    async def _answer(self, pool: Pool, question: Question) -> Any:
        """An answer; None where there is none that can be used."""
        prompt = question_prompt(self._prompts, pool, question)
        parsed = await self._written(prompt, ChoiceForm(question))
        return None if isinstance(parsed, Rejected) else parsed[CHOICE]

    async def explain(
        self, user_id: str | None, history: list[str], rows: list[int], seconds: float
    ) -> AsyncGenerator[Reasons]:
        """Reasons for items, each as soon as it is written, and all of an item when it is done.

        A claim that cites nothing given, or holds a link or markup, is dropped; where none is
        left, or it is too late, a template stands in.
        """
        context = self._context(user_id, history)
        late = asyncio.get_running_loop().time() + seconds
        written: asyncio.Queue[Reasons] = asyncio.Queue()
        tasks = [asyncio.create_task(self._explained(context, row, late, written)) for row in rows]
        try:
            left = len(rows)
            while left:
                reasons = await written.get()
                left -= reasons.source is not None
                yield reasons
        finally:
            for task in tasks:
                task.cancel()

    async def _explained(
        self, context: Context, row: int, late: float, written: asyncio.Queue[Reasons]
    ) -> None:
        """Put an item's reasons into the queue; the last entry has a source, whatever happens."""
        item, settings = self._told.items[row], self._settings
        evidence = {**context.lines, **item_lines(item)}
        kept: list[Claim] = []
        try:
            prompt = explain_prompt(self._prompts, context, item, settings.claims)
            form = ClaimsForm(evidence, settings.claims, settings.claim_characters)
            async with asyncio.timeout_at(late):
                text, stream = "", ClaimStream()
                async with aclosing(self._model.pieces(_request(prompt, form))) as pieces:
                    async for piece in pieces:
                        text += piece
                        for claim in stream.feed(piece):
                            good = checked([*kept, claim], evidence)[0][len(kept) :]
                            if good and len(kept) < settings.claims:
                                kept += good
                                written.put_nowait(Reasons(row, good, evidence, None))
                parsed = await self._mended(prompt, form, text)
                if not isinstance(parsed, Rejected):
                    kept = checked(parsed[CLAIMS], evidence)[0]
        except (TimeoutError, UnansweredError) as problem:
            logger.info("an explanation is not whole: %s", problem)
        except Exception as problem:
            logger.exception("explaining failed", exc_info=problem)
        source = "llm" if kept else "template"
        written.put_nowait(Reasons(row, kept or [template_of(context)], evidence, source))

    def _context(self, user_id: str | None, history: list[str]) -> Context:
        row = self._shelf.user_row(user_id)
        if row is not None and len(self._told.likes[row]):
            return self._told.of(row)
        return self._told.of_items(self._shelf.rows(history))

    async def _written(self, prompt: Prompt, form: Form) -> Fields | Rejected:
        """A reply in the form asked for; one that is not may be mended once."""
        reply = await self._model.answer(_request(prompt, form))
        if reply[ERROR]:
            return Rejected(ENGINE_ERROR, reply[ERROR])
        return await self._mended(prompt, form, reply[REPLY])

    async def _mended(self, prompt: Prompt, form: Form, text: str) -> Fields | Rejected:
        """A reply as it is read, asked for once more where it is not in form."""
        parsed = form.parse(text)
        if not isinstance(parsed, Rejected) or not text:
            return parsed
        again = self._prompts.repair(prompt, text[:_SHOWN_AGAIN], parsed.detail)
        reply = await self._model.answer(_request(again, form))
        return parsed if reply[ERROR] else form.parse(reply[REPLY])


def _request(prompt: Prompt, form: Form) -> dict[str, Any]:
    return {
        KEY: "1",
        MESSAGES: json.dumps(prompt.messages()),
        MAX_TOKENS: form.max_tokens,
        SCHEMA: form.schema(),
    }
