"""Stage `evaluate`: every model, and popularity, on the test split."""

from __future__ import annotations

from collections.abc import Mapping
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
from raysys.stages.context import RunContext, TrainedModelSettings
from raysys.store import write_json
from raysys.text.embeddings import VECTORS_FILE
from raysys.training.jobs import trained_on

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
    for name, model in context.settings.models.items():
        given = shared
        if model.train_noise:
            # Fake pairs that a model was fitted on would take up its lists: RLMRec masks them.
            # Those that chance has put on a test pair stay, or users would have fewer of these.
            seed = context.settings.training_of(name).seed
            fitted = trained_on(dataset, refit, model.train_noise, seed)
            fitted -= fitted.multiply(relevant)
            given = ray.put((mask.maximum(fitted), relevant, settings.ks))
        pending[name] = measure.remote(context.run.path(context.trained) / name, given)
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
        if model.reads_profiles(model.grid) and not model.without_text:
            pairs += [(name, other) for other in _without(models, name)]
    return [
        compare(results, name, other, f"{metric}@{k}", context.settings.train.seed)
        for name, other in pairs
        for metric in ("recall", "ndcg")
    ]


def _without(models: Mapping[str, TrainedModelSettings], name: str) -> list[str]:
    """The models that tell what the text is worth to one: controls, and the same without text.

    With weight 0 and all else equal where a run has that, else the backbone by itself, which
    may differ in its settings, as RLMRec's rows do.
    """
    model = models[name]
    rivals = {
        other: rival
        for other, rival in models.items()
        if other != name
        and (rival.backbone, rival.train_noise) == (model.backbone, model.train_noise)
    }
    shuffled = [
        other
        for other, rival in rivals.items()
        if rival.shuffle_profiles and rival.alignment == model.alignment
    ]
    plain = [
        other
        for other, rival in rivals.items()
        if not (rival.reads_profiles(rival.grid) or rival.without_text)
    ]
    fair = [other for other, rival in rivals.items() if rival.without_text and _twins(model, rival)]
    return shuffled + (fair or plain)


def _twins(model: TrainedModelSettings, rival: TrainedModelSettings) -> bool:
    """Whether two models differ in the weight of the text alone."""
    if model.alignment is None or rival.alignment is None:
        return False
    alignments = [
        one.model_dump(exclude={one.weight_name}) for one in (model.alignment, rival.alignment)
    ]
    return alignments[0] == alignments[1] and model.settings == rival.settings
