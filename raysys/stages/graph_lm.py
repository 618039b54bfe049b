"""Stages `graph_lm_…`: the graph-attentive language model (raysys/models/graph_lm.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix

from raysys.cluster import StagePlan, cores_per, preflight
from raysys.evaluation.kept_lists import write_test_lists
from raysys.evaluation.metrics import hit_matrix, intervals, ranking_metrics
from raysys.evaluation.training_plots import draw_relations, draw_training
from raysys.manifest import Manifest, StageReport
from raysys.models.graph_lm import as_batch
from raysys.models.linear import Ease, EaseSettings
from raysys.models.popularity import Popularity
from raysys.observe import progress
from raysys.ranking.retrieve import retrieve
from raysys.schema import RECOMMENDATIONS_FILE, SPLITS, TEST, TRAIN, VALID
from raysys.stages.context import RunContext
from raysys.stages.recommend import lists_table
from raysys.stages.train import place_training, plan_training
from raysys.store import read_json, write_json, write_table
from raysys.text.engine import model_identity
from raysys.text.graph_prompts import load_graph_templates
from raysys.training.graph_lm import train_graph_lm
from raysys.training.graph_lm_lessons import question
from raysys.training.graph_lm_model import GraphLMJob, build, history_scores, material, write_inputs
from raysys.training.graph_lm_settings import CROWD, INTERACTIONS, PREDICT, GraphLMSettings
from raysys.training.ray_train import RESULT_FILE, Placement

INPUTS, EVALUATION, LISTS = "graph_lm_inputs", "graph_lm_evaluation", "graph_lm_lists"
METRICS_FILE, RELATIONS_PLOT, TRAINING_PLOT = "metrics.json", "relations.png", "training.png"
#: Rows of the table.
GRAPH_LM, POPULARITY, EASE = "graph_lm", "popularity", "ease"
#: Users of one Ray Data block.
_BLOCK = 256
_USER, _ITEMS, _SCORES = "user", "items", "scores"
#: Users and items in the picture of R, at most.
_DRAWN = 24
Lists = tuple[np.ndarray, np.ndarray]


def stage_of(step: str) -> str:
    """The stage that trains a step."""
    return f"graph_lm_{step}"


def stages_of(settings: GraphLMSettings) -> tuple[str, ...]:
    """The stages that these settings ask for, in order."""
    return (INPUTS, *map(stage_of, settings.steps), EVALUATION, LISTS)


def run_inputs(context: RunContext) -> tuple[Manifest, bool]:
    """Write prompts and, where none is named, a small language model to `RUN/graph_lm_inputs`."""
    settings = context.settings.graph_lm
    config = settings.model_dump(
        mode="json", include={"small", "max_tokens", "crowd_prompts", "seed"}
    )
    return context.run.run_stage(
        INPUTS,
        {**config, **_source(settings), "crowd": CROWD in settings.steps},
        ["data"],
        lambda output: _inputs(context, output),
    )


def run_step(step: str, context: RunContext) -> tuple[Manifest, bool]:
    """Train a step into `RUN/graph_lm_STEP`, from where the step before it ended."""
    settings = context.settings.graph_lm
    before = _before(settings, step)
    config = settings.model_dump(
        mode="json",
        include={"lora", "relations", "softmax", "max_tokens", "valid_users", "seed", step},
    )
    return context.run.run_stage(
        stage_of(step),
        {**config, **_source(settings)},
        ["data", INPUTS, *([stage_of(before)] if before else [])],
        lambda output: _train(context, step, output),
    )


#: What trains each step, by its stage.
STEPS: dict[str, Callable[[RunContext], tuple[Manifest, bool]]] = {
    stage_of(step): partial(run_step, step) for step in (CROWD, INTERACTIONS, PREDICT)
}


def run_evaluation(context: RunContext) -> tuple[Manifest, bool]:
    """Measure the last step's model, popularity and EASE on the test split; draw R and losses."""
    settings = context.settings.graph_lm
    return context.run.run_stage(
        EVALUATION,
        {
            "ks": settings.ks,
            "steps": settings.steps,
            "relations": settings.relations.model_dump(),
            "mask": context.settings.evaluate.mask,
        },
        ["data", INPUTS, *map(stage_of, settings.steps)],
        lambda output: _evaluate(context, output),
    )


def run_lists(context: RunContext) -> tuple[Manifest, bool]:
    """Write lists for all users to `RUN/graph_lm_lists/recommendations.parquet`."""
    settings = context.settings.graph_lm
    return context.run.run_stage(
        LISTS,
        {"lists": settings.lists, "relations": settings.relations.model_dump()},
        ["data", INPUTS, stage_of(settings.steps[-1])],
        lambda output: _write_lists(context, output),
    )


def _source(settings: GraphLMSettings) -> dict[str, Any]:
    """The language model and the texts around ids, by content."""
    model = None if settings.model is None else model_identity(settings.model, settings.revision)
    templates = load_graph_templates(settings.templates).model_dump()
    return {"model": model, "templates": templates}


def _before(settings: GraphLMSettings, step: str) -> str | None:
    place = settings.steps.index(step)
    return settings.steps[place - 1] if place else None


def _job(context: RunContext, step: str, placement: Placement) -> GraphLMJob:
    run, settings = context.run, context.settings.graph_lm
    before = _before(settings, step)
    start = run.path(stage_of(before)) if before else None
    return GraphLMJob(run.path("data"), run.path(INPUTS), settings, step, start, placement)


def _inputs(context: RunContext, output: Path) -> StageReport:
    _ = context.resources  # Ray must be up before Ray Data writes prompts.
    preflight(StagePlan(INPUTS, ()), context.resources)
    counts = write_inputs(context.settings.graph_lm, context.dataset, output)
    total = sum(counts.values())
    return StageReport(
        counts={"in": total, "ok": total, "dead_letter": 0},
        figures={f"{kind}_prompts": float(count) for kind, count in counts.items()},
    )


def _train(context: RunContext, step: str, output: Path) -> StageReport:
    job = _job(context, step, place_training(context, stage_of(step)))
    result = train_graph_lm(job, output)
    prompts = result["prompts"]
    figures = {"epochs": float(result["epochs"]), "best_epoch": float(result["best_epoch"])}
    if result["best"] is not None:
        figures["validation_recall@20"] = result["best"]
    return StageReport(counts={"in": prompts, "ok": prompts, "dead_letter": 0}, figures=figures)


def _evaluate(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.graph_lm, context.dataset
    train, relevant = dataset.matrix(TRAIN), dataset.matrix(TEST)
    masked = (TRAIN,) if context.settings.evaluate.mask == "train" else (TRAIN, VALID)
    mask = dataset.matrix(*masked, opinion=None)
    relevant = relevant - relevant.multiply(mask)
    relevant.eliminate_zeros()
    counts = np.diff(relevant.indptr).astype(np.int64)
    users, depth = np.flatnonzero(counts), max(settings.ks)
    lists = {GRAPH_LM: _lists(context, EVALUATION, users, mask, depth)[0]}
    for name, model in ((POPULARITY, Popularity(train)), (EASE, Ease(train, EaseSettings()))):
        lists[name] = retrieve(model.score_block, users, mask, depth)[0]
    write_test_lists(output, users, lists)
    metrics = {name: _metrics(found, relevant, users, settings) for name, found in lists.items()}
    write_json(
        output / METRICS_FILE,
        {
            "users": len(users),
            "rows": {name: intervals(one, None, settings.seed) for name, one in metrics.items()},
            "graph_lm_minus": {
                name: intervals(metrics[GRAPH_LM], one, settings.seed)
                for name, one in metrics.items()
                if name != GRAPH_LM
            },
        },
    )
    _draw(context, output)
    everyone = len(dataset.user_ids)
    return StageReport(
        counts={"in": everyone, "ok": len(users), "dead_letter": everyone - len(users)},
        dropped={"no_test_interaction": everyone - len(users)} if everyone > len(users) else {},
    )


def _metrics(
    lists: np.ndarray, relevant: csr_matrix, users: np.ndarray, settings: GraphLMSettings
) -> dict[str, np.ndarray]:
    """Recall with both denominators, and NDCG, of each user."""
    counts = np.diff(relevant.indptr).astype(np.int64)[users]
    found = ranking_metrics(hit_matrix(lists, relevant, users), counts, settings.ks)
    wanted = ("recall@", "capped_recall@", "ndcg@")
    return {name: values for name, values in found.items() if name.startswith(wanted)}


def _draw(context: RunContext, output: Path) -> None:
    """R of the longest history that can be looked at, and how each step's loss fell."""
    settings, dataset = context.settings.graph_lm, context.dataset
    found = material(_job(context, settings.steps[-1], Placement()))
    histories = dataset.histories(TRAIN)
    user = max(range(len(histories)), key=lambda row: min(len(histories[row]), _DRAWN))
    prompt = question(found.writer, user, histories[user][-_DRAWN:])
    batch = as_batch([prompt], found.writer.words, found.relations.of_history)
    draw_relations(batch.bias()[0].numpy(), settings.relations.kind, output / RELATIONS_PLOT)
    losses: dict[str, Any] = {
        step: read_json(context.run.path(stage_of(step)) / RESULT_FILE)["history"]
        for step in settings.steps
    }
    draw_training(losses, "recall@20", output / TRAINING_PLOT)


def _write_lists(context: RunContext, output: Path) -> StageReport:
    dataset, settings = context.dataset, context.settings.graph_lm
    users = np.arange(len(dataset.user_ids))
    seen = dataset.matrix(*SPLITS, opinion=None)
    items, scores = _lists(context, LISTS, users, seen, settings.lists)
    table = lists_table(dataset, users, items, scores)
    write_table(output / RECOMMENDATIONS_FILE, table)
    empty = int((items < 0).all(axis=1).sum())
    return StageReport(
        counts={"in": len(users), "ok": len(users) - empty, "dead_letter": empty},
        dropped={"all_items_seen": empty} if empty else {},
    )


def _lists(context: RunContext, stage: str, users: np.ndarray, seen: csr_matrix, k: int) -> Lists:
    """The k best items of users, but for those that they have `seen`, on Ray Data actors."""
    import ray.data

    plan = plan_training(context, context.resources, stage)
    preflight(plan, context.resources)
    pool = plan.pools[0]
    last = context.settings.graph_lm.steps[-1]
    job = _job(context, last, Placement())
    arguments = (job, context.run.path(stage_of(last)), ray.put(seen), k, cores_per(pool.actors))
    blocks = [
        pa.table({_USER: users[start : start + _BLOCK]}) for start in range(0, len(users), _BLOCK)
    ]
    scored = ray.data.from_arrow(blocks).map_batches(
        _Scoring,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        batch_size=_BLOCK,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    items = np.full((len(users), k), -1, np.int64)
    scores = np.full((len(users), k), -np.inf, np.float32)
    done = 0
    with progress(stage, len(users)) as tracker:
        for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
            # Blocks come back in any order.
            rows = np.searchsorted(users, batch[_USER])
            items[rows], scores[rows] = batch[_ITEMS], batch[_SCORES]
            done += len(rows)
            tracker.update(done)
    if done != len(users):
        raise RuntimeError(f"{stage}: {done} of {len(users)} users came back")
    return items, scores


class _Scoring:
    """A Ray Data actor that holds a model."""

    def __init__(self, job: GraphLMJob, model: Path, seen: Any, k: int, threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._built, self._seen, self._k = build(job, device, model), ray.get(seen), k

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Lists (n, k) of some users."""
        users = np.asarray(batch[_USER])
        items, scores = retrieve(
            partial(history_scores, self._built), users, self._seen, self._k, block=_BLOCK
        )
        return {_USER: users, _ITEMS: items, _SCORES: scores}
