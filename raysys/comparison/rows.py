"""The rows of a comparison as runs: whose config, up to which stage, and where their lists are."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysys.comparison.settings import POPULARITY, CompareSettings, Method
from raysys.errors import UserError
from raysys.models.elmrec import SEQUENTIAL
from raysys.pipeline import STAGES, stages_to
from raysys.settings import nearest, override_values, parse_settings, set_key
from raysys.stages import elmrec, graph_lm, rerank, yes_no_lists
from raysys.stages.context import RunSettings

ROWS = "rows"
#: Done once for all rows that read them, with the whole machine.
SHARED = ("data", "item_profiles", "user_profiles", "embeddings")


@dataclass(frozen=True)
class Row:
    """A row, ready to run.

    Attributes:
        name: in the table.
        run: its config; `run.out` is a folder of its own.
        stages: what must run, in order; the last one keeps the lists.
        lists: the recommender's name in that stage's lists.
        engine: it asks a language model.
        leaks: its figures are not to be compared, for its inputs hold what is asked.
    """

    name: str
    run: RunSettings
    stages: tuple[str, ...]
    lists: str
    engine: bool
    leaks: bool

    @property
    def folder(self) -> Path:
        """The stage that keeps the lists."""
        return self.run.out / self.stages[-1]


def rows_of(settings: CompareSettings, base: dict[str, Any]) -> list[Row]:
    """All rows but popularity, whose lists are in each model's stage.

    Args:
        base: the run's config, with the overrides.

    Raises:
        UserError: an unknown model or key, or nothing to compare.
    """
    run = parse_settings(RunSettings, base, source=str(settings.run))
    methods = settings.methods or {
        **{name: Method() for name in run.models},
        **{kind: Method(kind=kind) for kind in ("elmrec", "graph_lm") if kind in base},
    }
    if not methods:
        raise UserError(f"{settings.run} has no [models], [elmrec] or [graph_lm] to compare.")
    rows = [_row(settings, base, run, name, method) for name, method in methods.items()]
    known = [POPULARITY, *methods]
    if settings.baseline not in known:
        raise UserError(f"baseline '{settings.baseline}': {nearest(settings.baseline, known)}")
    return rows


def _row(
    settings: CompareSettings, base: dict[str, Any], run: RunSettings, name: str, method: Method
) -> Row:
    config = deepcopy(base) | {
        "out": str(settings.out.resolve() / ROWS / name),
        "cluster": settings.cluster.model_dump(),
    }
    config.pop("mirror", None)
    # One protocol: what a user has before test is never recommended.
    set_key(config, "evaluate.mask", "train_valid")
    set_key(config, "evaluate.ks", [settings.k])
    for kind in ("elmrec", "graph_lm"):
        if method.kind == kind:
            ks = getattr(run, kind).ks
            set_key(config, f"{kind}.ks", sorted({*ks, settings.k}))
    if method.kind in ("model", "rerank", "yes_no"):
        model = method.model or name
        if model not in run.models:
            raise UserError(
                f"methods.{name}: no model '{model}': {nearest(model, list(run.models))}"
            )
        config["models"] = {one: base["models"][one] for one in _with_parts(run, model)}
        set_key(config, "recommend.model", model)
    if method.kind == "rerank":
        set_key(config, "rerank.model", model)
        set_key(config, "rerank.k", settings.k)
    elif method.kind == "yes_no":
        set_key(config, "yes_no.retriever", model)
    override_values(config, method.overrides)
    found = parse_settings(RunSettings, config, source=f"methods.{name}")
    if method.kind == "elmrec":
        lists, stages = elmrec.ELMREC, stages_to(found, elmrec.EVALUATION)
        if found.elmrec.split != "test" or SEQUENTIAL not in found.elmrec.tasks:
            raise UserError(f'methods.{name}: lists want split = "test" and the sequential task.')
        if found.elmrec.leaks:
            lists = elmrec.LEAKY
    elif method.kind == "graph_lm":
        lists, stages = graph_lm.GRAPH_LM, stages_to(found, graph_lm.EVALUATION)
    elif method.kind == "rerank":
        lists, stages = rerank.RERANK, stages_to(found, rerank.RERANK)
        if found.rerank.test_users == 0:
            raise UserError(f"methods.{name}: rerank.test_users = 0 measures nobody.")
    elif method.kind == "yes_no":
        lists, stages = yes_no_lists.YES_NO, stages_to(found, yes_no_lists.LISTS)
        if found.yes_no.pool < settings.k:
            raise UserError(f"methods.{name}: yes_no.pool is less than k = {settings.k}.")
    else:
        trained = "refit" if found.train.refit else "train"
        lists, stages = model, (*stages_to(found, trained), "evaluate")
    leaks = method.kind == "elmrec" and found.elmrec.leaks
    engine = method.kind in ("rerank", "yes_no")
    return Row(name, found, stages, lists, engine, leaks)


def _with_parts(run: RunSettings, model: str) -> list[str]:
    """A model, after those that it is made of or starts from."""
    settings = run.models[model]
    parts = [settings.start_from] if settings.start_from in run.models else []
    if settings.backbone == "blend":
        parts += [settings.settings["first"], settings.settings["second"]]
    found: list[str] = []
    for part in parts:
        found += [one for one in _with_parts(run, str(part)) if one not in found]
    return [*found, model]


def shared_stages(rows: list[Row]) -> tuple[str, ...]:
    """What some row reads, and no row has for itself alone."""
    wanted = {stage for row in rows for stage in row.stages}
    return tuple(stage for stage in STAGES if stage in SHARED and stage in wanted)
