"""Stage `evaluate`: every model, and popularity, on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from raysys.evaluation.beyond import list_figures
from raysys.evaluation.kept_lists import write_test_lists
from raysys.evaluation.protocols import RankingResult, all_rank
from raysys.evaluation.report import Comparison, compare
from raysys.manifest import Manifest, StageReport
from raysys.models.base import ScoreBlock
from raysys.models.popularity import Popularity
from raysys.models.profiles import Profiles
from raysys.models.saved import load_model
from raysys.schema import TEST, TRAIN, VALID
from raysys.stages.context import RunContext
from raysys.store import write_json
from raysys.text.embeddings import VECTORS_FILE

METRICS_FILE = "metrics.json"
POPULARITY = "popularity"


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Measure all models into `RUN/evaluate/metrics.json`."""
    settings = context.settings.evaluate
    return context.run.run_stage(
        "evaluate",
        {**settings.model_dump(mode="json"), "models": list(context.settings.models)},
        ["data", context.trained, *(["embeddings"] if _vectors(context) else [])],
        lambda output: _evaluate(context, output),
    )


def _evaluate(context: RunContext, output: Path) -> StageReport:
    import ray

    settings, dataset = context.settings.evaluate, context.dataset
    _ = context.resources  # Ray must be up before anything is put into its store.
    train = dataset.matrix(TRAIN)
    # What a model has learnt it would otherwise recommend again.
    refit = context.settings.train.refit
    masked = (TRAIN,) if settings.mask == "train" and not refit else (TRAIN, VALID)
    mask = dataset.matrix(*masked, opinion=None)
    relevant = dataset.matrix(TEST)
    shared = ray.put((mask, relevant, settings.ks))
    measure = ray.remote(num_cpus=1)(_measure)
    pending = {POPULARITY: measure.remote(Popularity(train).score_block, shared)}
    for name in context.settings.models:
        pending[name] = measure.remote(context.run.path(context.trained) / name, shared)
    results: dict[str, RankingResult] = {name: ray.get(ref) for name, ref in pending.items()}
    evaluated = len(results[POPULARITY].users)
    lists = {name: result.items for name, result in results.items()}
    write_test_lists(output, results[POPULARITY].users, lists)
    path = _vectors(context)
    vectors = Profiles.load(path, *dataset.shape) if path else None
    write_json(
        output / METRICS_FILE,
        {
            "models": {
                name: result.metrics | list_figures(result.items, train, settings.ks, vectors)
                for name, result in results.items()
            },
            "evaluated_users": evaluated,
            "slices": _slices(settings.slices, np.diff(train.indptr), results),
            "comparisons": [
                comparison.model_dump() for comparison in _comparisons(context, results)
            ],
        },
    )
    users = len(dataset.user_ids)
    return StageReport(
        counts={"in": users, "ok": evaluated, "dead_letter": users - evaluated},
        dropped={"no_test_interaction": users - evaluated} if users > evaluated else {},
    )


def _vectors(context: RunContext) -> Path | None:
    """The profile vectors, where this run has any."""
    path = context.run.path("embeddings") / VECTORS_FILE
    return path if path.is_file() else None


def _slices(
    bounds: tuple[int, ...], history: np.ndarray, results: dict[str, RankingResult]
) -> dict[str, Any]:
    """Figures of users with few train interactions, with how many users these are."""
    found = {}
    for bound in bounds:
        inside = history[results[POPULARITY].users] < bound
        if inside.any():
            found[f"below {bound}"] = {
                "users": int(inside.sum()),
                "models": {
                    name: {
                        key: float(values[inside].mean()) for key, values in one.per_user.items()
                    }
                    for name, one in results.items()
                },
            }
    return found


def _measure(
    model: ScoreBlock | Path, shared: tuple[csr_matrix, csr_matrix, tuple[int, ...]]
) -> RankingResult:
    """On a worker: a folder is loaded there, so that large models are mapped and not sent."""
    score_block = load_model(model).score_block if isinstance(model, Path) else model
    mask, relevant, ks = shared
    return all_rank(score_block, mask, relevant, ks)


def _comparisons(context: RunContext, results: dict[str, RankingResult]) -> list[Comparison]:
    """Models with text against the same without and with shuffled text, blends against parts."""
    models, k = context.settings.models, max(context.settings.evaluate.ks)
    pairs = []
    for name, model in models.items():
        if model.backbone == "blend":
            pairs += [(name, model.settings[part]) for part in ("first", "second")]
        if not model.reads_profiles(model.grid):
            continue
        for other, rival in models.items():
            plain = not rival.reads_profiles(rival.grid)
            control = rival.shuffle_profiles and rival.alignment == model.alignment
            # What else differs would be taken for the worth of the text.
            alike = (rival.backbone, rival.train_noise) == (model.backbone, model.train_noise)
            if other != name and alike and (plain or control):
                pairs.append((name, other))
    return [
        compare(results, name, other, f"{metric}@{k}", context.settings.train.seed)
        for name, other in pairs
        for metric in ("recall", "ndcg")
    ]
