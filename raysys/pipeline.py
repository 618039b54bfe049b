"""The stages of a run in order, and how to run all or some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raysys.errors import UserError
from raysys.manifest import Manifest, StageReport
from raysys.settings import nearest
from raysys.stages import (
    data,
    elmrec,
    embed,
    evaluate,
    explain,
    graph_lm,
    profiles,
    recommend,
    report,
    rerank,
    train,
    yes_no,
    yes_no_lists,
)
from raysys.stages.context import RunContext, RunSettings, Share

#: Stage name → what runs it, in order: each reads only folders of the stages above it.
STAGES: dict[str, Callable[[RunContext], tuple[Manifest, bool]]] = {
    "data": data.run,
    "item_profiles": profiles.run_items,
    "user_profiles": profiles.run_users,
    "embeddings": embed.run,
    "train": train.run,
    "refit": train.run_refit,
    "evaluate": evaluate.run,
    "recommend": recommend.run,
    "report": report.run,
    "summaries": profiles.run_summaries,
    rerank.RERANK: rerank.run_rerank,
    explain.EXPLAIN: explain.run_explain,
    yes_no.EXAMPLES: yes_no.run_examples,
    yes_no.MODEL: yes_no.run_model,
    yes_no.EVALUATION: yes_no.run_evaluation,
    yes_no_lists.LISTS: yes_no_lists.run_lists,
    elmrec.INPUTS: elmrec.run_inputs,
    elmrec.MODEL: elmrec.run_model,
    elmrec.EVALUATION: elmrec.run_evaluation,
    graph_lm.INPUTS: graph_lm.run_inputs,
    **graph_lm.STEPS,
    graph_lm.EVALUATION: graph_lm.run_evaluation,
    graph_lm.LISTS: graph_lm.run_lists,
}
#: What `raysys finetune yes-no` runs, after the summaries if it shows them.
YES_NO = (yes_no.EXAMPLES, yes_no.MODEL, yes_no.EVALUATION)
#: What `raysys train elmrec` runs.
ELMREC = (elmrec.INPUTS, elmrec.MODEL, elmrec.EVALUATION)
#: What `raysys train graph-lm` runs, less the steps that its settings leave out.
GRAPH_LM = (graph_lm.INPUTS, *graph_lm.STEPS, graph_lm.EVALUATION, graph_lm.LISTS)
#: Stages that are run when they are named, and not as part of a whole run.
ON_DEMAND = (
    *("summaries", rerank.RERANK, explain.EXPLAIN),
    *(*YES_NO, yes_no_lists.LISTS, *ELMREC, *GRAPH_LM),
)


@dataclass(frozen=True)
class StageOutcome:
    """A stage's manifest, and whether it had finished before."""

    manifest: Manifest
    skipped: bool


def stages_of(settings: RunSettings) -> tuple[str, ...]:
    """All stages that a run has, in order: texts are written where some model reads them.

    Raises:
        UserError: no models; said now and not after hours of writing profiles.
    """
    train.require_models(settings)
    return _stages(train.text_stages(settings))


def _stages(texts: Sequence[str]) -> tuple[str, ...]:
    without = {*ON_DEMAND, *train.TEXT_STAGES} - set(texts)
    return tuple(name for name in STAGES if name not in without)


def _wanted(settings: RunSettings, stages: Sequence[str]) -> list[str]:
    """The stages without a refit that the config does not ask for."""
    return [name for name in stages if name != "refit" or settings.train.refit]


def stages_to(settings: RunSettings, stage: str) -> tuple[str, ...]:
    """What must run, in order, for `stage` to finish; a later stage of its kind is left out.

    Raises:
        UserError: no such stage, or one that this run does not have.
    """
    if stage not in STAGES:
        raise UserError(f"no stage '{stage}': {nearest(stage, list(STAGES))}")
    own: tuple[str, ...]
    if stage in YES_NO:
        own = ("data", *(("summaries",) if settings.yes_no.summaries else ()), *YES_NO)
    elif stage in ELMREC:
        own = ("data", *ELMREC)
    elif stage in GRAPH_LM:
        own = ("data", *graph_lm.stages_of(settings.graph_lm))
    elif stage == "summaries":
        own = ("data", "summaries")
    else:
        train.require_models(settings)
        asks = stage in (rerank.RERANK, explain.EXPLAIN)
        texts = train.text_stages(settings)
        if stage in train.TEXT_STAGES or (asks and settings.rerank.profile_characters):
            texts = ("embeddings",) if settings.embeddings.own else train.TEXT_STAGES
        own = tuple(_wanted(settings, _stages(texts)))
        trained = own[: own.index("refit" if settings.train.refit else "train") + 1]
        if asks:
            own = (*trained, rerank.RERANK, explain.EXPLAIN)
        elif stage == yes_no_lists.LISTS:
            summaries = ("summaries",) if settings.yes_no.summaries else ()
            own = (*trained, *summaries, yes_no.EXAMPLES, yes_no.MODEL, stage)
    if stage not in own:
        raise UserError(f"this run has no stage '{stage}': {nearest(stage, own)}")
    return own[: own.index(stage) + 1]


def run_stages(
    settings: RunSettings, stages: Sequence[str] | None = None, share: Share | None = None
) -> dict[str, StageOutcome]:
    """Run the named stages, or all that the run has, in order; finished ones are skipped.

    Ray is joined or started for the first stage that needs it and left at the end.

    Args:
        share: for a run that is one of several at a time.

    Raises:
        UserError: the run is busy, an earlier stage is missing, or a stage
            refuses its settings or input.
    """
    outcomes = {}
    with RunContext(settings, share) as context:
        for name in _wanted(settings, stages_of(settings) if stages is None else stages):
            manifest, skipped = STAGES[name](context)
            outcomes[name] = StageOutcome(manifest, skipped)
    return outcomes


def foretell_stages(settings: RunSettings, stages: Sequence[str]) -> dict[str, StageReport]:
    """What the named text stages would ask the LLM; see `raysys.stages.profiles.foretell`.

    The data set is imported where it is not yet.
    """
    with RunContext(settings) as context:
        STAGES["data"](context)
        return profiles.foretell(context, tuple(stages))
