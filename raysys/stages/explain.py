"""Stage `explain`: reasons for the first items of each reranked list, checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from raysys.manifest import Manifest, StageReport
from raysys.schema import (
    CLAIMS,
    DROPPED_CLAIMS,
    EXPLANATION_SCHEMA,
    EXPLANATIONS_FILE,
    ITEM_ID,
    RANK,
    RECOMMENDATIONS_FILE,
    RERANKED_SCHEMA,
    SOURCE,
    TITLE,
    USER_ID,
)
from raysys.stages.context import RunContext
from raysys.stages.profiles import text_config
from raysys.stages.rerank import RERANK
from raysys.stages.told import profile_stages, told_of
from raysys.store import read_table, write_table
from raysys.text.explain import explain
from raysys.text.stage import writing

EXPLAIN = "explain"


def run_explain(context: RunContext) -> tuple[Manifest, bool]:
    """Explain the first items of the reranked lists into `RUN/explain`."""
    settings = context.settings.rerank
    return context.run.run_stage(
        EXPLAIN,
        text_config(settings, set(), settings.prompts().mark()),
        ["data", RERANK, *profile_stages(context)],
        lambda output: _explain(context, output),
    )


def _explain(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.rerank, context.dataset
    told, prompts = told_of(context), settings.prompts()
    lists = read_table(context.run.path(RERANK) / RECOMMENDATIONS_FILE, RERANKED_SCHEMA.names)
    user_rows: Mapping[str, int] = {name: row for row, name in enumerate(dataset.user_ids)}
    item_rows: Mapping[str, int] = {name: row for row, name in enumerate(dataset.item_ids)}
    wanted = [row for row in lists.to_pylist() if row[RANK] <= settings.explain_items]
    asked = {
        str(place): (told.of(user_rows[row[USER_ID]]), told.items[item_rows[row[ITEM_ID]]])
        for place, row in enumerate(wanted)
    }
    with writing(
        EXPLAIN, settings, prompts, context.settings.cluster, context.resources, output
    ) as writer:
        found = explain(
            writer,
            prompts,
            asked,
            claims=settings.claims,
            characters=settings.claim_characters,
        )
        counters = writer.asked
    rows = []
    dropped: Counter[str] = Counter()
    for place, row in enumerate(wanted):
        explained = found[str(place)]
        dropped += explained.dropped
        claims = [
            {
                "claim": claim.text,
                "because": [
                    {"key": key, "line": explained.evidence[key]}
                    for key in claim.because
                    if key in explained.evidence
                ],
            }
            for claim in explained.claims
        ]
        rows.append(
            {
                USER_ID: row[USER_ID],
                RANK: row[RANK],
                ITEM_ID: row[ITEM_ID],
                TITLE: row[TITLE],
                CLAIMS: json.dumps(claims, ensure_ascii=False),
                SOURCE: explained.source,
                DROPPED_CLAIMS: sum(explained.dropped.values()),
            }
        )
    table = pa.Table.from_pylist(rows, schema=EXPLANATION_SCHEMA)
    write_table(output / EXPLANATIONS_FILE, table)
    sources = Counter(table[SOURCE].to_pylist())
    return StageReport(
        counts={"in": len(wanted), "ok": len(rows), "dead_letter": 0, **sources},
        figures={
            "calls": float(counters.generated),
            "prompt_tokens": float(counters.prompt_tokens),
            "generated_tokens": float(counters.generated_tokens),
            "seconds": round(counters.seconds, 1),
            **{f"claims_{reason}": float(count) for reason, count in dropped.items()},
        },
    )
