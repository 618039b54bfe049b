"""A trained model on disk: parameters, settings, and the embeddings that retrieval uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.graph.bipartite import BipartiteGraph
from raysys.models.aligned import Aligned
from raysys.models.base import Others, Recommender
from raysys.models.linear import Blend, BlendSettings, ItemWeights
from raysys.models.parameters import load_parameters, parameters_of
from raysys.models.profiles import Profiles
from raysys.models.registry import ModelSettings, build_model
from raysys.store import map_arrays, read_arrays, read_json, write_arrays, write_json

PARAMETERS_FILE = "model.safetensors"
MODEL_FILE = "model.json"
EMBEDDINGS_FILE = "embeddings.safetensors"
WEIGHTS_FILE = "weights.safetensors"
#: Prefix of the backbone's parameters inside an aligned model.
_BACKBONE = "backbone."


class SavedModel(BaseModel):
    """`model.json`."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSettings
    users: int
    items: int
    width: int
    dataset: str = ""
    learnt: str = ""


class Scorer(Protocol):
    """What ranks: scores of all items for users, and a vector for each item."""

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32."""
        ...

    def score_histories(self, histories: csr_matrix) -> np.ndarray:
        """Histories (b, I) of users whom the model has not seen -> scores (b, I) float32."""
        ...

    def item_vectors(self) -> np.ndarray:
        """(I, d) float32: near each other where the model sees items as alike."""
        ...


class Embeddings:
    """Scores by dot product of final embeddings.

    Args:
        users: (U, d) float32.
        items: (I, d) float32.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users = users
        self.items = items

    @classmethod
    def of(cls, model: Recommender) -> Embeddings:
        """The final embeddings of a model, without dropout."""
        users, items = model.final_embeddings()
        return cls(users.float().cpu().numpy(), items.float().cpu().numpy())

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32."""
        scores: np.ndarray = self.users[user_rows] @ self.items.T
        return scores

    def score_histories(self, histories: csr_matrix) -> np.ndarray:
        """Histories (b, I) -> scores (b, I) float32: a user is the mean of the items."""
        scores: np.ndarray = self.history_vectors(histories) @ self.items.T
        return scores

    def history_vectors(self, histories: csr_matrix) -> np.ndarray:
        """Histories (b, I) -> (b, d): the mean of the items' embeddings."""
        counts = np.maximum(np.diff(histories.indptr), 1)[:, None]
        vectors: np.ndarray = histories @ self.items / counts.astype(np.float32)
        return vectors

    def item_vectors(self) -> np.ndarray:
        """(I, d) the items' embeddings."""
        return self.items


class _BlendScorer(Blend):
    """A saved blend: two models of the same run."""

    def __init__(self, first: Scorer, second: Scorer, weight: float) -> None:
        super().__init__(first.score_block, second.score_block, weight)
        self._new_users = Blend(first.score_histories, second.score_histories, weight)
        self._items = (first if weight >= _HALF else second).item_vectors

    def score_histories(self, histories: csr_matrix) -> np.ndarray:
        """Histories (b, I) -> scores (b, I) float32."""
        return self._new_users.score_block(histories)

    def item_vectors(self) -> np.ndarray:
        """Those of the model with the larger weight."""
        return self._items()


_HALF = 0.5


def save_model(
    folder: Path,
    model: Recommender,
    settings: ModelSettings,
    dataset: str = "",
    learnt: str = "",
) -> None:
    """Write parameters, settings and final embeddings into `folder`.

    Args:
        dataset: `Dataset.identity()`; a model is never started from one of another data set.
        learnt: `Dataset.identity_of` the splits it was trained on; nor from another split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    embeddings = Embeddings.of(model)
    write_arrays(folder / PARAMETERS_FILE, parameters_of(model))
    write_arrays(folder / EMBEDDINGS_FILE, {"users": embeddings.users, "items": embeddings.items})
    about = SavedModel(
        model=settings,
        users=model.graph.users,
        items=model.graph.items,
        width=model.width,
        dataset=dataset,
        learnt=learnt,
    )
    write_json(folder / MODEL_FILE, about.model_dump())


def save_linear(
    folder: Path,
    settings: ModelSettings,
    shape: tuple[int, int],
    model: ItemWeights | Embeddings | None,
    dataset: str = "",
) -> None:
    """Write a linear model: its settings, and history and weights or factors of its own.

    Args:
        shape: (U, I).
        model: None for a blend, which reads the folders beside its own.
        dataset: see `save_model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = 0
    if isinstance(model, Embeddings):
        width = model.users.shape[1]
        write_arrays(folder / EMBEDDINGS_FILE, {"users": model.users, "items": model.items})
    elif model is not None:
        arrays = _csr_parts("train", model.train)
        if isinstance(model.weights, np.ndarray):
            arrays["weights"] = model.weights
        else:
            arrays |= _csr_parts("weights", model.weights)
        write_arrays(folder / WEIGHTS_FILE, arrays)
    about = SavedModel(model=settings, users=shape[0], items=shape[1], width=width, dataset=dataset)
    write_json(folder / MODEL_FILE, about.model_dump())


def load_model(folder: Path, above: tuple[Path, ...] = ()) -> Scorer:
    """The scorer of a saved model; it needs neither the graph nor the profiles.

    Args:
        above: folders of the blends that it is a part of.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    about = _about(folder)
    if about.model.backbone == "blend":
        return _load_blend(folder, about, (*above, folder))
    if about.model.linear and not about.width:
        return _load_weights(folder, about)
    return _load_embeddings(folder, about)


def _load_blend(folder: Path, about: SavedModel, above: tuple[Path, ...]) -> _BlendScorer:
    path = folder / MODEL_FILE
    blend = BlendSettings.model_validate(about.model.settings)

    def beside(name: str) -> Scorer:
        part = folder.parent / name
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"{path}: '{name}' is no name of a model beside it.")
        if part in above:
            raise UserError(f"{path}: the blend is a part of itself, by '{name}'.")
        found = _about(part)
        if (found.users, found.items) != (about.users, about.items):
            raise UserError(
                f"{path}: '{name}' has {found.users} users and {found.items} items, the blend "
                f"{about.users} and {about.items}. Train the models again."
            )
        return load_model(part, above)

    return _BlendScorer(beside(blend.first), beside(blend.second), blend.weight)


def _load_embeddings(folder: Path, about: SavedModel) -> Embeddings:
    path = folder / EMBEDDINGS_FILE
    arrays = read_arrays(path)
    for name, rows in (("users", about.users), ("items", about.items)):
        array = arrays.get(name)
        if array is None or array.shape != (rows, about.width) or array.dtype != np.float32:
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise UserError(
                f"{path}: '{name}' must be float32 {(rows, about.width)} as {MODEL_FILE} says, "
                f"found {found}. Train the model again."
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path}: '{name}' holds NaN or infinite values.")
    return Embeddings(arrays["users"], arrays["items"])


def _load_weights(folder: Path, about: SavedModel) -> ItemWeights:
    path = folder / WEIGHTS_FILE
    arrays = map_arrays(path)
    shape = (about.items, about.items)
    try:
        train = _csr("train", arrays, (about.users, about.items))
        weights = arrays["weights"] if "weights" in arrays else _csr("weights", arrays, shape)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} does not hold the model of {MODEL_FILE}: {error}.") from None
    if weights.shape != shape or weights.dtype != np.float32:
        raise UserError(
            f"{path}: 'weights' must be float32 {shape} as {MODEL_FILE} says, found "
            f"{weights.dtype} {weights.shape}. Train the model again."
        )
    for name, part in (("train", train), ("weights", weights)):
        # Of a sum, not of each entry: no mask as large as the weights.
        if not np.isfinite(part.sum(dtype=np.float64)):
            raise UserError(f"{path}: '{name}' holds NaN or infinite values.")
    return ItemWeights(train, weights)


def _csr_parts(name: str, matrix: csr_matrix) -> dict[str, np.ndarray]:
    return {
        f"{name}.starts": matrix.indptr,
        f"{name}.columns": matrix.indices,
        f"{name}.values": matrix.data,
    }


def _csr(name: str, arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> csr_matrix:
    # Copies of the parts in memory: scipy sorts and checks in place.
    values, columns, starts = (
        np.array(arrays[f"{name}.{part}"]) for part in ("values", "columns", "starts")
    )
    for part in (columns, starts):
        if not np.issubdtype(part.dtype, np.signedinteger):
            raise ValueError(f"'{name}' has {part.dtype} indices")
    matrix = csr_matrix((values, columns, starts), shape=shape)
    # An index beyond its matrix would be read as memory of something else.
    matrix.check_format(full_check=True)
    return matrix


def start_from(
    model: Recommender, folder: Path, backbone: str, dataset: str, learnt: Sequence[str]
) -> None:
    """Set the backbone's parameters to those of a saved model, aligned or not.

    An alignment's own parameters keep their fresh start.

    Args:
        backbone: name of the model's.
        dataset: `Dataset.identity()` of what the model will be trained on.
        learnt: `Dataset.identity_of` what the saved one may have learnt. Any other split may
            hold pairs of this one's validation or test.

    Raises:
        UserError: the saved model is of another backbone, width, data set or split.
    """
    about = _about(folder)
    if about.model.backbone != backbone:
        raise UserError(
            f"{folder} is a saved '{about.model.backbone}': a '{backbone}' cannot start from it."
        )
    if dataset and about.dataset and about.dataset != dataset:
        raise UserError(
            f"{folder} was trained on another data set: its users and items are not these."
        )
    if about.learnt and about.learnt not in learnt:
        raise UserError(
            f"{folder} was trained on another split, and may have learnt what is validation or "
            "test here: start from a model of this split."
        )
    arrays = read_arrays(folder / PARAMETERS_FILE)
    aligned = any(name.startswith(_BACKBONE) for name in arrays)
    own = {
        name.removeprefix(_BACKBONE): array
        for name, array in arrays.items()
        if not aligned or name.startswith(_BACKBONE)
    }
    inner = model.backbone if isinstance(model, Aligned) else model
    load_parameters(inner, own, folder / PARAMETERS_FILE)


def restore_model(
    folder: Path,
    graph: BipartiteGraph,
    profiles: Profiles | None = None,
    others: Others = MappingProxyType({}),
) -> Recommender:
    """The model itself with its saved parameters, to train on or to propagate a new graph.

    Args:
        others: see `build_model`.

    Raises:
        UserError: a file is missing or broken, or the parameters do not fit graph or profiles.
    """
    model = build_model(_about(folder).model, graph, profiles, seed=0, others=others)
    load_parameters(model, read_arrays(folder / PARAMETERS_FILE), folder / PARAMETERS_FILE)
    return model


def _about(folder: Path) -> SavedModel:
    path = folder / MODEL_FILE
    try:
        return SavedModel.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} does not describe a model: {error.errors()[0]['msg']}") from None
