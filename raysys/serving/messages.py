"""What callers send and what they get: the endpoint's requests, answers and problems."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
)

from raysys.serving.settings import (
    MAX_BATCH,
    MAX_EXCLUDED,
    MAX_EXPLAINED,
    MAX_HISTORY,
    MAX_ID,
    MAX_K,
)
from raysys.serving.shelf import Source

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _a_number(value: object) -> object:
    """5 and 5.0, as JSON Schema has it; not "5", nor true."""
    if isinstance(value, bool | str):
        raise ValueError("should be a valid integer")
    return value


_whole = BeforeValidator(_a_number)


class Request(BaseModel):
    """Base of requests: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Filters(Request):
    """What may be answered."""

    exclude: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDED)
    """Item ids that are left out; unknown ones do no harm."""
    where: dict[Text, Text] = Field(default_factory=dict, max_length=3)
    """Item column → value, case aside: `{"genres": "Comedy"}`. All must hold."""


class Asking(Request):
    """Who asks: a known user, someone new by what they have, or nobody in particular."""

    user_id: Id | None = None
    """A user; whom the run does not know is answered by `history`."""
    history: list[Id] = Field(default_factory=list, max_length=MAX_HISTORY)
    """Item ids that someone new has or likes; unknown ones count for nothing."""
    deadline_ms: Annotated[int, Field(ge=1, le=60_000), _whole] | None = None
    """Until when the language model may answer; none: the server's."""


class Recommend(Asking):
    """A question for a list."""

    k: Annotated[int, Field(ge=1, le=MAX_K), _whole] = 10
    """Length of the list."""
    rerank: Literal["off", "auto", "prompt", "pairwise", "batches", "relevancy"] = "auto"
    """`auto`: where it helped on validation. A method: always, and in this way."""
    filters: Filters | None = None
    """What may be answered; none: everything that is new to them."""
    explain: Annotated[bool, Strict()] = False
    """Whether the first items carry reasons, as many as `rerank.explain_items` says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "7", "k": 10},
                {"history": ["50", "181"], "k": 5, "filters": {"where": {"genres": "Comedy"}}},
            ]
        }
    )


class Explain(Asking):
    """A question for reasons."""

    item_ids: list[Id] = Field(min_length=1, max_length=MAX_EXPLAINED)
    """What is to be explained."""


class Length(Request):
    """How much is asked for, in a URL."""

    k: int = Field(default=10, ge=1, le=MAX_K)
    """Length of the list."""


class Search(Length):
    """A search by title, in a URL."""

    title: str = Field(min_length=1, max_length=100)
    """Words that the title holds."""


class RecommendBatch(Request):
    """Several questions at once."""

    requests: list[Recommend] = Field(min_length=1, max_length=MAX_BATCH)
    """The questions."""


class Reason(BaseModel):
    """Why an item is recommended, and what was known that says so."""

    text: str
    because: list[str]


class Item(BaseModel):
    """One item of a list."""

    item_id: str
    title: str | None
    score: float
    graph_rank: int | None = None
    """Its place before it was reranked, from 1."""
    reasons: list[Reason] | None = None
    """Where they were asked for."""


class Answer(BaseModel):
    """A list, best item first."""

    user_id: str | None
    model: str
    version: str
    source: Source
    reranked: bool = False
    """Whether the language model's order counts in it."""
    degraded: bool = False
    """Whether it was to be reranked and could not be, so that it is in the retrieval's order."""
    reason: str | None = None
    """Why it is degraded."""
    items: list[Item]


class Problem(BaseModel):
    """RFC 9457: what went wrong, `application/problem+json`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class BatchEntry(BaseModel):
    """An answer, or why there is none."""

    answer: Answer | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    """Entries in the order of the requests."""

    entries: list[BatchEntry]


class Similar(BaseModel):
    """Items near one."""

    item_id: str
    model: str
    version: str
    items: list[Item]


class Named(BaseModel):
    """An item by its name."""

    item_id: str
    title: str | None


class Titles(BaseModel):
    """Items whose title was looked for."""

    items: list[Named]


class Model(BaseModel):
    """What is served."""

    name: str
    version: str
    users: int
    items: int


class Models(BaseModel):
    """All that are served."""

    models: list[Model]


class Status(BaseModel):
    """Of the process."""

    status: Literal["ok"]
