"""Settings of the endpoint: who may call, how much, how long an answer may take."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from raysys.settings import Settings
from raysys.text.rerank import RerankSettings

#: Limits on what a caller may send; see docs/serving.md.
MAX_K, MAX_HISTORY, MAX_EXCLUDED, MAX_ID = 100, 500, 500, 256
MAX_BATCH, MAX_EXPLAINED = 64, 5
MAX_BODY_BYTES = 64 << 10


class DoorSettings(Settings):
    """Keys and rates."""

    key_file: Path | None = None
    """Lines `NAME sha256:HEX` as `raysys key NAME` prints them; none: `RAYSYS_API_KEY`."""
    requests_per_second: float = Field(default=50.0, gt=0)
    """Of a key, over all replicas together."""
    burst: int = Field(default=100, ge=1)
    """Requests that a key may send at once after a pause."""


class ServeSettings(Settings):
    """The endpoint."""

    run: Path
    """A finished run, or a folder of published models (`raysys publish`)."""
    doors: DoorSettings = DoorSettings()
    """Who may call, and how often."""
    rerank: RerankSettings | None = None
    """How a language model reranks and explains: an OpenAI-compatible endpoint
    (`engine.kind = http`) or vLLM in replicas of its own (`vllm`); none: it does not."""
    rerank_at_once: int = Field(default=64, ge=1)
    """Lists that a replica has reranked at the same time, at most: fewer while the language model
    comes late; what is beyond keeps the retrieval's order."""
    deadline_s: float = Field(default=2.0, gt=0, le=60)
    """Of a request that names none: what is not reranked by then keeps the retrieval's order."""
    cache_lists: int = Field(default=10_000, ge=0)
    """Answers kept in each replica; 0: none."""
    cache_s: float = Field(default=300.0, gt=0)
    """Seconds that an answer is kept."""
    warm: bool = True
    """Fill the cache with the run's own lists at the start."""
    index_above: int = Field(default=200_000, ge=0)
    """Catalogues of more items are searched by an index (needs faiss) that finds 98 % of the best
    hundred; filtered lists are always exact."""
    watch_s: float = Field(default=1.0, gt=0)
    """Seconds between looks for a newly published model."""

    @field_validator("rerank")
    @classmethod
    def _online(cls, value: RerankSettings | None) -> RerankSettings | None:
        if value is not None and value.engine.kind == "transformers":
            raise ValueError(
                "engine.kind 'transformers' writes in batches; for a server set "
                "engine.kind = vllm, or http and engine.http.base_url"
            )
        return value
