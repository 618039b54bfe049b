"""What every stage that lets an LLM write has in common: its settings, its writer, its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from raysys.assets import home
from raysys.cluster import ClusterSettings, Resources
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.schema import (
    CALLS,
    CUT_ITEMS,
    DEAD_LETTER_FILE,
    DEAD_LETTER_SCHEMA,
    DETAIL,
    ENTITY_ID,
    FIELDS,
    GENERATED_TOKENS,
    PROFILE_SCHEMA,
    PROFILES_FILE,
    PROMPT_TOKENS,
    REASON,
    REASONING,
    SOURCE,
    SUMMARY,
)
from raysys.settings import Settings
from raysys.store import write_table
from raysys.text.cache import ReplyCache
from raysys.text.engine import EngineSettings, SamplingSettings
from raysys.text.engines import build_engine
from raysys.text.generation import DryRun, Generation
from raysys.text.prompts import Prompts
from raysys.text.quality import text_figures
from raysys.text.structured import ENGINE_ERROR, Fields, Rejected, is_none
from raysys.text.writing import Writer, Written

CACHE_FILE = "replies.sqlite"


class TextSettings(Settings):
    """What profiles and summaries have in common."""

    domain: str = "products"
    """What the things are: movies, books, products, games, news, businesses, or a .toml file of
    yours; see `raysys/text/prompt_files/domains`."""
    examples: bool = False
    """Show the domain's solved cases first. Models below 1B parameters need them."""
    on_failure: Literal["dead_letter", "template"] = "dead_letter"
    """What becomes of a row whose reply cannot be used after one repair: it is without a text,
    or gets one made of its attributes alone, marked `source = template`."""
    seed: int = 2023
    """Draws what is sampled."""
    cache: Path | None = None
    """The file of replies that were paid for; default `RAYSYS_HOME/replies.sqlite`."""
    engine: EngineSettings = EngineSettings()
    """The LLM."""
    sampling: SamplingSettings = SamplingSettings()
    """How it decodes."""


@dataclass(frozen=True)
class Text:
    """One entity's text, and what it took. `value` None: the LLM said that it cannot."""

    value: str | None
    fields: Fields
    source: str
    reasoning: str | None = None
    copied: bool = False
    cut: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @classmethod
    def of(cls, value: str, rounds: Sequence[Written]) -> Text:
        """From all that was written for one entity, the last of it being its text."""
        last = rounds[-1]
        return cls(
            None if is_none(value) else value,
            last.fields,
            "repaired" if any(one.repaired for one in rounds) else "llm",
            last.fields.get(REASONING),
            last.copied,
            sum(one.cut for one in rounds),
            sum(one.calls for one in rounds),
            sum(one.prompt_tokens for one in rounds),
            sum(one.generated_tokens for one in rounds),
        )


@contextmanager
def writing(
    stage: str,
    settings: TextSettings,
    prompts: Prompts,
    cluster: ClusterSettings,
    have: Resources,
    output: Path,
    *,
    dry: bool = False,
) -> Iterator[Writer]:
    """A writer with the engine of the settings; the engine ends with it.

    Args:
        dry: nothing is asked, see `DryRun`; `have` is not looked at.
    """
    limit = settings.engine.max_model_len
    engine = build_engine(settings.engine, cluster, settings.sampling)
    cache = ReplyCache(settings.cache or home() / CACHE_FILE)
    if dry:
        yield Writer(DryRun(engine, cache), prompts, limit)
        return
    with Generation(
        engine,
        cache,
        output,
        stage=stage,
        have=have,
        block_rows=settings.engine.batch_size,
    ) as generation:
        yield Writer(generation, prompts, limit)


def latest_titles(titles: Iterable[Any], shown: int = 10) -> Text | None:
    """What a failed user gets where a template is asked for: the latest titles, oldest first."""
    latest = [str(title) for title in list(titles)[-shown:] if title]
    return Text("; ".join(latest), {}, "template") if latest else None


def publish(
    output: Path,
    results: Mapping[str, Text | Rejected],
    writer: Writer,
    further: Mapping[str, Mapping[str, Any]] | None = None,
    schema: pa.Schema = PROFILE_SCHEMA,
) -> StageReport:
    """Write the texts and the dead letters: rows in = texts + dead letters.

    Args:
        further: further columns of `schema`, by entity.

    Raises:
        UserError: the engine failed for more than half of the rows. Nothing is finished then, and
            the same command asks for what is missing.
    """
    _refuse_failed_engine(results)
    texts: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    for name, result in results.items():
        if isinstance(result, Rejected):
            dead.append({ENTITY_ID: name, REASON: result.reason, DETAIL: result.detail})
            continue
        texts.append(
            {
                ENTITY_ID: name,
                SUMMARY: result.value,
                REASONING: result.reasoning,
                FIELDS: json.dumps(result.fields, ensure_ascii=False),
                SOURCE: result.source,
                CUT_ITEMS: result.cut,
                CALLS: result.calls,
                PROMPT_TOKENS: result.prompt_tokens,
                GENERATED_TOKENS: result.generated_tokens,
                **((further or {}).get(name, {})),
            }
        )
    table = pa.Table.from_pylist(texts, schema=schema)
    write_table(output / PROFILES_FILE, table)
    write_table(output / DEAD_LETTER_FILE, pa.Table.from_pylist(dead, schema=DEAD_LETTER_SCHEMA))
    sources = Counter(table[SOURCE].to_pylist())
    return StageReport(
        counts={
            "in": len(results),
            "ok": len(texts),
            "dead_letter": len(dead),
            "null_profiles": table[SUMMARY].null_count,
            **{f"from_{source}": sources[source] for source in ("repaired", "template")},
        },
        dropped=dict(Counter(row[REASON] for row in dead)),
        figures=_figures(writer, [found for found in results.values() if isinstance(found, Text)]),
    )


def _refuse_failed_engine(results: Mapping[str, Text | Rejected]) -> None:
    """A missing key or a dead endpoint is no property of the rows: they would be lost for good."""
    failed = [
        result
        for result in results.values()
        if isinstance(result, Rejected) and result.reason == ENGINE_ERROR
    ]
    if 2 * len(failed) > len(results):
        raise UserError(
            f"the language model failed for {len(failed)} of {len(results)} rows, so nothing is "
            f"kept of this stage but the replies: {failed[0].detail}"
        )


def _figures(writer: Writer, texts: list[Text]) -> dict[str, float]:
    counts, asked = writer.counts, writer.asked
    seconds = asked.seconds
    return {
        "prompt_tokens": float(asked.prompt_tokens),
        "generated_tokens": float(asked.generated_tokens),
        "calls": float(asked.generated),
        "cached_calls": float(asked.cached),
        "cached_prompt_tokens": float(asked.cached_prompt_tokens),
        "cached_generated_tokens": float(asked.cached_generated_tokens),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(asked.generated_tokens / seconds, 1) if seconds else 0.0,
        "valid_at_once": round(counts.valid_at_once / max(1, counts.replies), 4),
        "cut_prompts": float(counts.cut_prompts),
        "cut_items": float(counts.cut_items),
        **text_figures([text.value for text in texts if text.value]),
        "copied_input_rate": round(sum(text.copied for text in texts) / max(1, len(texts)), 4),
    }
