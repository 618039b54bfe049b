"""Rerank many users' pools with an engine: their methods advance together, round by round.

End-to-End Personalization §2.3. A question whose reply cannot be used after one repair ends its
user's reranking: that list stays in the graph's order and is marked degraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, model_validator

from raysys.ranking.explain import LONGEST_CLAIM
from raysys.ranking.rerank import Answer, Method, MethodSettings, Question, method_of
from raysys.text.choices import CHOICE, ChoiceForm
from raysys.text.context import Context
from raysys.text.prompts import Prompt, Prompts, Shown, load_prompts
from raysys.text.stage import TextSettings
from raysys.text.structured import Rejected
from raysys.text.writing import Writer, Written


class RerankSettings(TextSettings):
    """How a language model reranks and explains. Defaults: End-to-End Personalization."""

    model: str = "best"
    """The trained model whose best items are the pool; see `recommend.model`."""
    method: MethodSettings = MethodSettings()
    """What the language model is asked."""
    pool: int = Field(default=30, ge=2, le=200)
    """Candidates of a user."""
    k: int = Field(default=20, ge=1, le=200)
    """Length of the lists."""
    weight: float = Field(default=0.8, ge=0, le=1)
    """Of the language model's scores; the graph's have the rest."""
    below: int | None = Field(default=None, ge=0)
    """Only users with fewer train interactions are reranked; none: all."""
    max_rank_shift: int | None = Field(default=10, ge=0)
    """Places that an item may move up or down, whatever its text made the model say."""
    choose: bool = False
    """Choose `weight` and `below` on validation, among `weights` and `belows` and not to rerank
    at all."""
    weights: tuple[float, ...] = (0.2, 0.5, 0.8, 1.0)
    """Tried for `weight`."""
    belows: tuple[int | None, ...] = (10, 20, 50, None)
    """Tried for `below`."""
    valid_users: int = Field(default=200, ge=1)
    """Users, drawn by seed, on whom that is chosen."""
    test_users: int | None = Field(default=0, ge=0)
    """Users, drawn by seed, on whom reranking is measured; 0: not at all, none: all."""
    users: int | None = Field(default=None, ge=0)
    """Users, drawn by seed, whose lists are written; none: all."""
    item_columns: tuple[str, ...] = ()
    """Item columns shown beside the title; empty: all."""
    item_characters: int = Field(default=200, ge=20)
    """Longer values of an item are cut."""
    liked_items: int = Field(default=10, ge=0)
    """Latest likes shown of a user."""
    profile_characters: int = Field(default=600, ge=0)
    """Shown of a user's profile, where the run has profiles."""
    explain_items: int = Field(default=3, ge=1)
    """First items of each list that `raysys explain` explains."""
    claims: int = Field(default=2, ge=1, le=10)
    """Reasons for one item."""
    claim_characters: int = Field(default=160, ge=20, le=LONGEST_CLAIM)
    """Longest reason."""

    @model_validator(mode="after")
    def _fits(self) -> RerankSettings:
        if self.k > self.pool:
            raise ValueError(f"k = {self.k} is more than the pool of {self.pool}")
        return self

    def prompts(self) -> Prompts:
        """The prompts of all questions."""
        return load_prompts("rerank", self.domain, words=0)


@dataclass(frozen=True)
class Pool:
    """One user's candidates.

    Attributes:
        context: what is told of the user.
        items: the candidates as they are shown, in the graph's order.
        seed: of this user's shuffles.
    """

    context: Context
    items: Sequence[Shown]
    seed: int


@dataclass
class Reranked:
    """What the model made of a pool.

    Attributes:
        scores: (n,), higher is better; None: the graph's order stays.
        problem: why it is degraded; None as well where nothing was asked.
        calls, prompt_tokens, generated_tokens: what it took.
    """

    scores: np.ndarray | None = None
    problem: Rejected | None = None
    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass
class _Open:
    """A user whose method has not returned yet."""

    pool: Pool
    method: Method
    questions: list[Question]
    found: Reranked = field(default_factory=Reranked)


def rerank(
    writer: Writer, prompts: Prompts, pools: Mapping[str, Pool], settings: MethodSettings
) -> dict[str, Reranked]:
    """Scores of every user's candidates; each round of all users is one batch.

    Questions of a user stand next to each other, so that an engine with prefix caching reads the
    user's part once.
    """
    found: dict[str, Reranked] = {}
    waiting: dict[str, _Open] = {}
    for name, pool in pools.items():
        method = method_of(settings, len(pool.items), pool.seed)
        user = _Open(pool, method, [])
        found[name] = user.found
        if _advance(user, None):
            waiting[name] = user
    number = 0
    while waiting:
        number += 1
        asked: dict[str, tuple[str, Question]] = {
            f"{place} {name}": (name, question)
            for name, user in waiting.items()
            for place, question in enumerate(user.questions)
        }
        written = writer.write(
            {
                key: question_prompt(prompts, waiting[name].pool, question)
                for key, (name, question) in asked.items()
            },
            f"round {number}",
            {key: ChoiceForm(question) for key, (_, question) in asked.items()},
            # An order of some of the candidates is none.
            whole=True,
        )
        for name, user in list(waiting.items()):
            replies = [written[f"{place} {name}"] for place in range(len(user.questions))]
            if not _advance(user, replies):
                del waiting[name]
    return found


def question_prompt(prompts: Prompts, pool: Pool, question: Question) -> Prompt:
    """The chat that asks one question."""
    shown = [pool.items[place] for place in question.items]
    return prompts.prompt(
        question.kind, shown, context=pool.context.text(), count=str(len(question.items))
    )


def _advance(user: _Open, replies: Sequence[Written | Rejected] | None) -> bool:
    """Give the method its answers; whether it has further questions."""
    answers: list[Answer] | None = None
    if replies is not None:
        answers = []
        for reply in replies:
            answer = _answer(user.found, reply)
            if isinstance(answer, Rejected):
                user.found.problem = user.found.problem or answer
            else:
                answers.append(answer)
        if user.found.problem is not None:
            return False
    try:
        user.questions = next(user.method) if answers is None else user.method.send(answers)
    except StopIteration as done:
        user.found.scores = done.value
        return False
    return True


def _answer(found: Reranked, reply: Written | Rejected) -> Answer | Rejected:
    """The answer, with its cost added up."""
    if isinstance(reply, Rejected):
        return reply
    found.calls += reply.calls
    found.prompt_tokens += reply.prompt_tokens
    found.generated_tokens += reply.generated_tokens
    answer: Answer = reply.fields[CHOICE]
    return answer
