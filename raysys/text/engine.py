"""The LLM as one protocol: a Ray Data set of chats in, a Ray Data set of replies out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raysys.assets import loading, model_path
from raysys.cluster import Resources, StagePlan
from raysys.errors import UserError
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.settings import Settings
from raysys.store import fingerprint, sha256_file

if TYPE_CHECKING:
    from ray.data import Dataset

#: Columns of a request: what it is known by, the chat as JSON, how long a reply may be, and the
#: JSON schema of the reply.
KEY, MESSAGES, MAX_TOKENS, SCHEMA = "key", "messages", "max_tokens", "schema"
#: Columns of a reply beside `key` and the token counts; one of the two is empty.
REPLY, ERROR = "reply", "error"
REQUEST_SCHEMA = pa.schema(
    [(KEY, pa.string()), (MESSAGES, pa.string()), (MAX_TOKENS, pa.int64()), (SCHEMA, pa.string())]
)
REPLY_SCHEMA = pa.schema(
    [
        (KEY, pa.string()),
        (REPLY, pa.string()),
        (ERROR, pa.string()),
        (PROMPT_TOKENS, pa.int64()),
        (GENERATED_TOKENS, pa.int64()),
    ]
)
#: Bytes of text for each token where no tokeniser is at hand; English has about four.
BYTES_PER_TOKEN = 3
#: Larger files are known by their size, their first and their last bytes.
_WHOLE_FILE = 1 << 30
_ENDS = 1 << 20


class UnansweredError(Exception):
    """A reply that did not come, or broke off; says why."""


class HttpSettings(Settings):
    """An OpenAI-compatible endpoint."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address up to `/v1`; nothing else is ever called, and no redirect is followed."""
    api_key_env: str = "RAYSYS_LLM_KEY"
    """The environment variable that holds the key; a key is never part of a config."""
    requests_per_second: float = Field(default=10.0, gt=0)
    """The most requests started in a second."""
    timeout_s: float = Field(default=120.0, gt=0)
    """For one request."""
    attempts: int = Field(default=5, ge=1)
    """Tries for one request: timeouts, 429 and 5xx are tried again after a growing pause."""
    json_mode: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the endpoint can do to keep a reply in form."""

    @model_validator(mode="after")
    def _is_http(self) -> HttpSettings:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError("http.base_url must start with http:// or https://")
        return self


class EngineSettings(Settings):
    """Which LLM writes the texts, and how it is run."""

    kind: Literal["vllm", "http", "transformers"] = "vllm"
    """`vllm` on the cluster's GPUs or CPUs; `http`: any OpenAI-compatible endpoint;
    `transformers`: without vLLM, slower."""
    model: str = "smollm2-135m-instruct"
    """An asset name, a local folder, or a hub id; for `http` the endpoint's name of it."""
    revision: str | None = None
    """Of a hub id: a commit, so that the model cannot change unseen."""
    tokenizer: str | None = None
    """For `http`: an asset, folder or hub id to count tokens with; without it they are estimated
    from the length of the text."""
    max_model_len: int = Field(default=2048, ge=128)
    """Prompt and reply tokens together."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Sequences decoded together; for `http` requests under way."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of one Ray Data block: what a crash can cost is a few of these."""
    kv_cache_gib: float = Field(default=2.0, gt=0)
    """KV cache of one CPU engine; on a GPU vLLM takes what is free."""
    prefix_caching: bool = True
    """Whether the shared start of prompts is computed once (`vllm`)."""
    cpu_quantization: Literal["none", "int8"] = "none"
    """`int8`: vLLM on a CPU computes with 8-bit weights and activations, about 1.5 times as
    fast."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer of one engine."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Groups of GPUs that share the layers of one engine."""
    http: HttpSettings = HttpSettings()
    """For `http`."""


#: Settings of how an engine is run, which leave what it writes as it is.
HOW: dict[str, Any] = {
    **dict.fromkeys(("max_num_seqs", "batch_size", "kv_cache_gib", "prefix_caching"), True),
    **dict.fromkeys(("tensor_parallel", "pipeline_parallel"), True),
    "http": {"api_key_env", "requests_per_second", "timeout_s", "attempts"},
}


class SamplingSettings(Settings):
    """How replies are decoded. Temperature 0 makes runs repeatable."""

    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time."""
    repetition_penalty: float = Field(default=1.0, ge=1)
    """Above 1 keeps small models from going round in circles; it slows a CPU by a third."""
    seed: int = 2023
    """Used when the temperature is above 0."""


class Engine(Protocol):
    """What every engine can do."""

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """The actor pools that `replies` will start."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the reply to a chat: model, precision, sampling. Part of the cache's key."""
        ...

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text, (n,) int64."""
        ...

    def replies(self, requests: Dataset) -> Dataset:
        """`REQUEST_SCHEMA` → `REPLY_SCHEMA`, in any order; a failed row carries its error."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A model's tokeniser, by name: loaded once in each process that uses it."""

    model: str
    revision: str | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens each text has, (n,) int64."""
        if not texts:
            return np.zeros(0, np.int64)
        tokenizer = tokenizer_of(self.model, self.revision)
        found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return np.array([len(ids) for ids in found], np.int64)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """A chat as the model's own template writes it, up to where its reply begins."""
        text: str = tokenizer_of(self.model, self.revision).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text


@cache
def tokenizer_of(model: str, revision: str | None) -> Any:
    """The tokeniser of a model, loaded once in each process.

    Raises:
        UserError: no such model, or none that can be reached.
    """
    from transformers import AutoTokenizer

    with loading(model):
        # Long texts are what we count, no reason for a warning.
        return AutoTokenizer.from_pretrained(
            model_path(model), revision=revision, model_max_length=1 << 40
        )


def estimated_tokens(texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text as its length suggests, rounded up; (n,) int64."""
    return np.array([-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts], np.int64)


def model_identity(model: str, revision: str | None) -> dict[str, Any]:
    """A local model by the content of its files, one of a hub by its name and revision."""
    path = Path(model_path(model))
    if not path.is_dir():
        return {"model": model, "revision": revision}
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    if not files:
        raise UserError(f"engine.model: {path} is an empty folder.")
    return {
        "content": fingerprint({file.relative_to(path).as_posix(): _mark(file) for file in files})
    }


def _mark(file: Path) -> list[Any]:
    size = file.stat().st_size
    if size <= _WHOLE_FILE:
        return [size, sha256_file(file)]
    with file.open("rb") as opened:
        first = opened.read(_ENDS)
        opened.seek(-_ENDS, os.SEEK_END)
        return [size, fingerprint([first.hex(), opened.read().hex()])]
