"""Fit a linear model: every setting of its grid once, the best on validation is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.models.als import AlsSettings, als
from raysys.models.base import ScoreBlock
from raysys.models.linear import (
    Blend,
    BlendSettings,
    Ease,
    EaseSettings,
    ItemKNN,
    ItemKNNSettings,
    ItemWeights,
)
from raysys.models.profiles import Profiles
from raysys.models.registry import LINEAR, ModelSettings
from raysys.models.saved import Embeddings, load_model, save_linear
from raysys.settings import nearest, parse_settings
from raysys.store import write_json
from raysys.training.jobs import HISTORY_FILE, TrainJob, TrainResult, load_inputs
from raysys.training.loop import WATCHED
from raysys.training.ray_train import RESULT_FILE

Model = ItemWeights | Embeddings | Blend


def train_linear_model(job: TrainJob, output: Path) -> TrainResult:
    """Fit in this process and write the model into `output`; a blend reads its neighbours.

    Writes `model.json`, `weights.safetensors` (not for a blend), `history.json` (empty) and
    `training.json`.

    Raises:
        UserError: data, profiles or settings are wrong.
    """
    given = load_inputs(job)
    train, profiles = given.train, given.profiles
    fitted = fit(
        job.model,
        job.grid,
        train,
        given.valid,
        profiles,
        beside=output.parent,
        known=given.known,
    )
    own = None if isinstance(fitted.model, Blend) else fitted.model
    save_linear(output, fitted.settings, train.shape, own, given.identity)
    write_json(output / HISTORY_FILE, [])
    result = TrainResult(
        epochs=0,
        best_epoch=0,
        best_recall=fitted.recall,
        null_users=0,
        null_items=0 if profiles is None else int((~profiles.item_has_profile).sum()),
        chosen=fitted.chosen,
    )
    write_json(output / RESULT_FILE, asdict(result))
    return result


@dataclass(frozen=True)
class Fitted:
    """The best model of a grid.

    Attributes:
        model: it.
        settings: with what was chosen filled in.
        chosen: what the grid left to choose.
        recall: validation Recall@20; None without a validation split.
    """

    model: Model
    settings: ModelSettings
    chosen: dict[str, Any]
    recall: float | None


def fit(
    settings: ModelSettings,
    grid: Mapping[str, Sequence[Any]],
    train: csr_matrix,
    valid: csr_matrix,
    profiles: Profiles | None = None,
    scorers: Mapping[str, ScoreBlock] | None = None,
    beside: Path | None = None,
    known: csr_matrix | None = None,
) -> Fitted:
    """Fit a linear model with every combination of `grid`.

    Args:
        settings: the model; values of the grid replace its settings.
        grid: values to choose among, by name of a setting.
        train, valid: (U, I); only valid decides.
        profiles: read where `text_weight` is above 0.
        scorers: the models that a blend may name.
        beside: the folder whose subfolders are such models, where `scorers` is not given.
        known: (U, I) what validation lists leave out; train if not given.

    Raises:
        UserError: a setting of the grid is unknown, there is no validation split to choose by,
            or a blend names a model that is not there.
    """
    names = list(LINEAR[settings.backbone].model_fields)
    for name in grid:
        if name not in names:
            raise UserError(f"unknown setting '{name}' in a grid: {nearest(name, names)}")
    mask = train if known is None else known
    combinations = list(_combinations(grid))
    if len(combinations) > 1 and valid.nnz == 0:
        raise UserError("a grid is chosen from on validation, but the validation split is empty.")
    best: Fitted | None = None
    blocks = _BlendParts(scorers, beside)
    for chosen in combinations:
        values = parse_settings(
            ModelSettings,
            {"backbone": settings.backbone, "settings": settings.settings | chosen},
            source=f"grid of '{settings.backbone}'",
        )
        model = _build(values, train, profiles, blocks)
        recall = None
        if valid.nnz:
            recall = all_rank(model.score_block, mask, valid, [20]).metrics[WATCHED]
        if best is None or (recall or 0.0) > (best.recall or 0.0):
            best = Fitted(model, values, chosen, recall)
    assert best is not None
    return best


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


class _BlendParts:
    """Scores by model name, each model loaded once."""

    def __init__(self, scorers: Mapping[str, ScoreBlock] | None, beside: Path | None) -> None:
        self._scorers = dict(scorers or {})
        self._beside = beside

    def __getitem__(self, name: str) -> ScoreBlock:
        if name not in self._scorers:
            if self._beside is None or not (self._beside / name).is_dir():
                raise UserError(f"the blend names model '{name}', which is not trained.")
            self._scorers[name] = load_model(self._beside / name).score_block
        return self._scorers[name]


def _build(
    settings: ModelSettings, train: csr_matrix, profiles: Profiles | None, parts: _BlendParts
) -> Model:
    values = settings.settings
    if settings.backbone == "blend":
        blend = BlendSettings.model_validate(values)
        return Blend(parts[blend.first], parts[blend.second], blend.weight)
    if settings.backbone == "itemknn":
        return ItemKNN(train, ItemKNNSettings.model_validate(values))
    if settings.backbone == "als":
        return Embeddings(*als(train, AlsSettings.model_validate(values)))
    ease = EaseSettings.model_validate(values)
    if profiles is None:
        return Ease(train, ease)
    return Ease(train, ease, profiles.items, profiles.item_has_profile)
