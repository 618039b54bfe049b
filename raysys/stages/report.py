"""Stage `report`: gather what the other stages left into one JSON file and one page."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raysys.evaluation.report import (
    REPORT_HTML,
    REPORT_JSON,
    Comparison,
    ItemExample,
    Recommendation,
    ReportData,
    StageSummary,
    UserExample,
    write_report,
)
from raysys.evaluation.report_plots import ItemMap
from raysys.manifest import Manifest, StageReport, versions
from raysys.models.saved import load_model
from raysys.schema import (
    RECOMMENDATIONS_FILE,
    SCORE,
    SPLITS,
    TITLE,
    TRAIN,
    USER_ID,
)
from raysys.stages.context import RunContext
from raysys.stages.evaluate import METRICS_FILE
from raysys.stages.recommend import MODEL_FILE
from raysys.stages.train import TEXT_STAGES, history, text_stages
from raysys.store import read_json, read_table, replace_file
from raysys.text.profiles import summaries_in_order

BEFORE = ("data", "item_profiles", "user_profiles", "embeddings", "train", "evaluate", "recommend")
#: History titles shown for an example user, newest last.
HISTORY_SHOWN = 10
ITEM_EXAMPLES = 8


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Write `RUN/report/` and copy its two files to the top of the run."""
    settings = context.settings.report
    done = context.run.run_stage(
        "report",
        settings.model_dump(mode="json"),
        _before(context),
        lambda output: _report(context, output),
    )
    for name in (REPORT_JSON, REPORT_HTML):
        content = (context.run.path("report") / name).read_bytes()
        target = context.run.root / name
        if not target.is_file() or target.read_bytes() != content:
            replace_file(target, partial(Path.write_bytes, data=content))
    return done


def _before(context: RunContext) -> list[str]:
    """The stages that the report reads: not every run has texts."""
    without = set(TEXT_STAGES) - set(text_stages(context.settings))
    return [name for name in BEFORE if name not in without]


def _report(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings, context.dataset
    manifests = {name: context.run.require(name, "raysys run CONFIG") for name in _before(context)}
    measured = read_json(context.run.path("evaluate") / METRICS_FILE)
    model = read_json(context.run.path("recommend") / MODEL_FILE)["model"]
    users, items = dataset.shape
    counts = manifests["data"].counts
    data = ReportData(
        title=settings.report.title,
        dataset={
            "name": dataset.name,
            "users": users,
            "items": items,
            "interactions": counts["interactions"],
            **{split: counts[split] for split in SPLITS},
            "recommended by": model,
        },
        models=measured["models"],
        evaluated_users=measured["evaluated_users"],
        comparisons=[Comparison(**row) for row in measured["comparisons"]],
        stages={name: _summary(manifest) for name, manifest in manifests.items()},
        curves={
            name: _curve(history(context.run.path("train") / name)) for name in settings.models
        },
        users=_user_examples(context),
        item_profiles=_item_examples(context),
        config=settings.model_dump(mode="json"),
        versions=versions(),
    )
    vectors = load_model(context.run.path("train") / model).item_vectors()
    titles = [title or "" for title in dataset.items[TITLE].to_pylist()]
    write_report(data, output, ItemMap(np.asarray(vectors), _groups(context), titles))
    return StageReport(counts={"in": len(data.models), "ok": len(data.models), "dead_letter": 0})


def _summary(manifest: Manifest) -> StageSummary:
    counts = manifest.counts
    return StageSummary(
        seconds=manifest.seconds,
        rows=counts.get("in", counts.get("rows", 0)),
        dropped=manifest.dropped,
        figures=manifest.figures,
    )


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _user_examples(context: RunContext) -> list[UserExample]:
    """Users spread evenly over the table, with what they chose and what they get."""
    dataset, wanted = context.dataset, context.settings.report.users
    total = len(dataset.user_ids)
    rows = np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(np.int64))
    lists = read_table(context.run.path("recommend") / RECOMMENDATIONS_FILE)
    titles = dataset.items[TITLE].to_pylist()
    profiles: list[str | None] = [None] * total
    if "user_profiles" in text_stages(context.settings):
        profiles = summaries_in_order(context.run.path("user_profiles"), dataset.user_ids)
    train_users, train_items = dataset.pairs(TRAIN)
    examples = []
    for row in rows:
        mine = lists.filter(pc.equal(lists[USER_ID], dataset.user_ids[row]))
        history_items = train_items[train_users == row][-HISTORY_SHOWN:]
        examples.append(
            UserExample(
                user_id=dataset.user_ids[row],
                history=[titles[item] or dataset.item_ids[item] for item in history_items],
                recommendations=[
                    Recommendation(title=entry[TITLE] or entry["item_id"], score=entry[SCORE])
                    for entry in mine.slice(0, HISTORY_SHOWN).to_pylist()
                ],
                profile=profiles[row],
            )
        )
    return examples


def _item_examples(context: RunContext) -> list[ItemExample]:
    if "item_profiles" not in text_stages(context.settings):
        return []
    dataset = context.dataset
    profiles = summaries_in_order(context.run.path("item_profiles"), dataset.item_ids)
    rows = np.unique(np.linspace(0, len(profiles) - 1, min(ITEM_EXAMPLES, len(profiles))))
    titles = dataset.items[TITLE].to_pylist()
    return [
        ItemExample(title=titles[row] or dataset.item_ids[row], profile=profiles[row])
        for row in rows.astype(int)
    ]


def _groups(context: RunContext) -> list[str]:
    """A short group name for each item: the first entry of the group column."""
    column, items = context.settings.report.group_column, context.dataset.items
    if column is None or column not in items.column_names:
        return [""] * items.num_rows
    return [re.split(r"[,|;]", str(value or ""))[0].strip() for value in items[column].to_pylist()]
