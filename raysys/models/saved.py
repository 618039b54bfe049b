"""A trained model on disk: parameters, settings, and the embeddings that retrieval uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.errors import UserError
from raysys.graph.bipartite import BipartiteGraph
from raysys.models.base import Recommender
from raysys.models.profiles import Profiles
from raysys.models.registry import ModelSettings, build_model
from raysys.store import read_arrays, read_json, write_arrays, write_json

PARAMETERS_FILE = "model.safetensors"
MODEL_FILE = "model.json"
EMBEDDINGS_FILE = "embeddings.safetensors"


class SavedModel(BaseModel):
    """`model.json`."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSettings
    users: int
    items: int
    width: int


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


def save_model(folder: Path, model: Recommender, settings: ModelSettings) -> None:
    """Write parameters, settings and final embeddings into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    embeddings = Embeddings.of(model)
    write_arrays(folder / PARAMETERS_FILE, parameters_of(model))
    write_arrays(folder / EMBEDDINGS_FILE, {"users": embeddings.users, "items": embeddings.items})
    about = SavedModel(
        model=settings, users=model.graph.users, items=model.graph.items, width=model.width
    )
    write_json(folder / MODEL_FILE, about.model_dump())


def load_model(folder: Path) -> Embeddings:
    """The scorer of a saved model; it needs neither the graph nor the profiles.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    about = _about(folder)
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


def restore_model(
    folder: Path, graph: BipartiteGraph, profiles: Profiles | None = None
) -> Recommender:
    """The model itself with its saved parameters, to train on or to propagate a new graph.

    Raises:
        UserError: a file is missing or broken, or the parameters do not fit graph or profiles.
    """
    model = build_model(_about(folder).model, graph, profiles, seed=0)
    load_parameters(model, read_arrays(folder / PARAMETERS_FILE), folder / PARAMETERS_FILE)
    return model


def parameters_of(model: Recommender) -> dict[str, np.ndarray]:
    """All parameters by name, as copies on the CPU."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def load_parameters(model: Recommender, arrays: dict[str, np.ndarray], source: Path) -> None:
    """Set all parameters of `model`.

    Raises:
        UserError: names or shapes differ; `source` is named.
    """
    own = dict(model.named_parameters())
    for name in sorted(own.keys() ^ arrays.keys()):
        raise UserError(f"{source} does not fit this model: parameter '{name}' is not in both.")
    for name, parameter in own.items():
        if tuple(parameter.shape) != arrays[name].shape:
            raise UserError(
                f"{source} does not fit this model: '{name}' is {arrays[name].shape}, "
                f"expected {tuple(parameter.shape)}."
            )
        parameter.copy_(torch.from_numpy(arrays[name]))


def _about(folder: Path) -> SavedModel:
    path = folder / MODEL_FILE
    try:
        return SavedModel.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} does not describe a model: {error.errors()[0]['msg']}") from None
