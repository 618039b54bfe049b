"""The models that `benchmarks.reproduce` knows by name, and fits with one seed on one split.

Names: `popularity`; `itemknn`, `ease`, `ease_sparse`, `ease_text`; a backbone, with `_con` or
`_gen` for RLMRec's aligned row (`_sampled`: con with the sampled denominator; `_gen_sampled`: gen
that reconstructs 2,048 of the hidden nodes), then `0` for the same with weight 0, or `_shuffled`
for the control with the texts dealt out anew (also `ease_text_shuffled`); `a+b`: the blend of both.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.models.base import ScoreBlock
from raysys.models.popularity import Popularity
from raysys.models.profiles import Profiles, shuffled
from raysys.models.published import PUBLISHED_BACKBONES, published
from raysys.models.registry import BACKBONES, ModelSettings, build_model
from raysys.models.saved import Embeddings
from raysys.settings import nearest
from raysys.training.linear_models import fit
from raysys.training.loop import WATCHED, GraphTraining, TrainSettings

GRIDS: dict[str, dict[str, tuple[float | str, ...]]] = {
    "itemknn": {"neighbours": (20, 50, 100, 200), "shrink": (0.0, 10.0, 50.0)},
    "ease": {"reg": (20.0, 50.0, 100.0, 200.0, 400.0)},
    "ease_sparse": {"solver": ("sparse",), "reg": (20.0, 50.0, 100.0), "neighbours": (50, 100)},
    "ease_text": {"reg": (100.0, 200.0, 400.0), "text_weight": (30.0, 100.0, 300.0)},
}
BLEND_GRID = {"weight": tuple(round(step / 10, 1) for step in range(11))}
#: What stands behind a backbone's name: an alignment, and what differs from its published row.
ALIGNED: dict[str, tuple[str, dict[str, Any]]] = {
    "con": ("con", {}),
    "gen": ("gen", {}),
    "sampled": ("con", {"denominator": "sampled"}),
    "gen_sampled": ("gen", {"recon_nodes": 2048}),
}
#: Backbones that need nothing but a graph and a seed.
_PLAIN = [name for name in BACKBONES if name != "gat"]
SHUFFLED = "_shuffled"


class Split(Protocol):
    """What models are fitted on."""

    train: csr_matrix
    valid: csr_matrix
    profiles: Profiles | None


@dataclass(frozen=True)
class Recipe:
    """A model's settings, and for a linear one the settings that validation chooses among."""

    settings: ModelSettings
    grid: dict[str, tuple[float | str, ...]] | None = None
    shuffled: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether it needs `--vectors`."""
        return self.settings.reads_profiles(self.grid or {})


def _recipes() -> dict[str, Recipe]:
    table = {
        name: Recipe(ModelSettings(backbone=name.partition("_")[0]), grid)
        for name, grid in GRIDS.items()
    }
    text = table["ease_text"]
    table[f"ease_text{SHUFFLED}"] = Recipe(text.settings, text.grid, shuffled=True)
    table |= {name: Recipe(published(name)) for name in _PLAIN}
    for backbone in PUBLISHED_BACKBONES:
        for kind, (alignment, changes) in ALIGNED.items():
            for ending, weight in (("", None), ("0", 0.0), (SHUFFLED, None)):
                row = published(backbone, alignment, weight=weight)
                assert row.alignment is not None
                changed = row.alignment.model_copy(update=changes)
                settings = row.model_copy(update={"alignment": changed})
                table[f"{backbone}_{kind}{ending}"] = Recipe(settings, None, ending == SHUFFLED)
    return table


RECIPES = _recipes()
POPULARITY = "popularity"
_KNOWN = (POPULARITY, *RECIPES)


def require_known(names: Sequence[str], has_texts: bool) -> None:
    """Refuse a name before hours are spent on those that stand before it.

    Raises:
        UserError: an unknown name, or a model that reads texts where there are none.
    """
    for part in (part for name in names for part in name.split("+", 1)):
        if part not in _KNOWN:
            hint = nearest(part, _KNOWN)
            if not hint.endswith("?"):
                plain = ", ".join((POPULARITY, *GRIDS, *_PLAIN))
                hint = f"valid: {plain}; RLMRec's with _con, _gen and more; a+b for a blend."
            raise UserError(f"--models: no model '{part}', {hint}")
        if part != POPULARITY and RECIPES[part].reads_text and not has_texts:
            raise UserError(f"{part} reads texts: give --vectors (see benchmarks.text_vectors).")


class Bench:
    """Fits models once; a blend asks for its two parts."""

    def __init__(self, data: Split, seed: int, patience: int) -> None:
        self.data, self.seed, self.patience = data, seed, patience
        self._fitted: dict[str, tuple[ScoreBlock, str]] = {}

    def fitted(self, name: str) -> tuple[ScoreBlock, str]:
        """The scores of a model, and what was chosen for it on validation."""
        if name not in self._fitted:
            self._fitted[name] = self._fit(name)
        return self._fitted[name]

    def _fit(self, name: str) -> tuple[ScoreBlock, str]:
        if name == POPULARITY:
            return Popularity(self.data.train).score_block, ""
        if "+" in name:
            first, second = name.split("+", 1)
            scorers = {part: self.fitted(part)[0] for part in (first, second)}
            settings = ModelSettings(backbone="blend", settings={"first": first, "second": second})
            return self._chosen(settings, BLEND_GRID, None, scorers)
        recipe = RECIPES[name]
        profiles = self.data.profiles if recipe.reads_text else None
        if recipe.shuffled and profiles is not None:
            profiles = shuffled(profiles, self.seed)
        if recipe.grid is not None:
            return self._chosen(recipe.settings, recipe.grid, profiles)
        return self._trained(name, recipe.settings, profiles)

    def _chosen(
        self,
        settings: ModelSettings,
        grid: dict[str, tuple[Any, ...]],
        profiles: Profiles | None,
        scorers: dict[str, ScoreBlock] | None = None,
    ) -> tuple[ScoreBlock, str]:
        data = self.data
        best = fit(settings, grid, data.train, data.valid, profiles, scorers)
        chosen = ", ".join(f"{key} {value}" for key, value in best.chosen.items())
        return best.model.score_block, f"{chosen}, validation {best.recall:.4f}"

    def _trained(
        self, name: str, settings: ModelSettings, profiles: Profiles | None
    ) -> tuple[ScoreBlock, str]:
        """RLMRec's settings and early stop."""
        data = self.data
        model = build_model(settings, bipartite_graph(data.train), profiles, self.seed)
        train = TrainSettings(seed=self.seed, patience=self.patience)
        training = GraphTraining(model, data.train, data.valid, train)
        training.run(partial(_show, name))
        training.restore_best()
        note = f"epoch {training.best_epoch}, validation {training.best_recall:.4f}"
        return Embeddings.of(model).score_block, note


def _show(name: str, training: GraphTraining) -> None:
    recall = training.history[-1][WATCHED]
    if recall is not None:
        print(f"  {name} epoch {training.epoch}: validation {recall:.4f}", file=sys.stderr)
