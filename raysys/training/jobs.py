"""What a model is trained from, and what comes out: the same for graph and linear models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.sampling import with_fake_pairs
from raysys.models.base import Others
from raysys.models.profiles import Profiles, shuffled
from raysys.models.registry import ModelSettings
from raysys.schema import DISLIKED, NEITHER, TRAIN, VALID
from raysys.store import fingerprint
from raysys.training.loop import TrainSettings
from raysys.training.ray_train import Placement

HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class TrainJob:
    """What to train, as paths and settings: small enough to send to every worker.

    Attributes:
        dataset: folder written by `raysys data import`; train and valid splits are used.
        model: backbone and alignment.
        train: how.
        profiles: safetensors file of profile vectors (`users`, `items`, `user_has_profile`,
            `item_has_profile`), needed where the model reads profiles.
        shuffle_profiles: the control run: vectors dealt out at random by `train.seed`.
        train_noise: fake interactions added to train, as a share of the true ones.
        start_from: folder of a saved model whose backbone parameters are the start.
        grid: settings of a linear model to choose among on validation, by name.
        refit: train on train and validation together; nothing is left to choose by.
        placement: what it takes of the cluster; does not change the result.
    """

    dataset: Path
    model: ModelSettings
    train: TrainSettings
    profiles: Path | None = None
    shuffle_profiles: bool = False
    train_noise: float = 0.0
    start_from: Path | None = None
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    refit: bool = False
    placement: Placement = field(default_factory=Placement)

    def name(self) -> str:
        """A name that is the same only for the same job, so no other job's checkpoint is used."""
        values = {
            "dataset": str(self.dataset),
            "model": self.model.model_dump(),
            "train": self.train.model_dump(),
            "profiles": str(self.profiles),
            "shuffle_profiles": self.shuffle_profiles,
            "train_noise": self.train_noise,
            "start_from": str(self.start_from),
            "refit": self.refit,
        }
        return f"train-{fingerprint(values)[:16]}"


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Attributes:
        epochs: finished epochs; 0 for a model that is not trained by gradients.
        best_epoch: the saved one.
        best_recall: validation Recall@20 of what was saved; None without a validation split.
        null_users, null_items: nodes without a profile, left out of the alignment.
        chosen: what validation chose from the grid.
        halved: epochs before the best one after which the step size was halved.
    """

    epochs: int
    best_epoch: int
    best_recall: float | None
    null_users: int
    null_items: int
    chosen: dict[str, Any] = field(default_factory=dict)
    halved: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainInputs:
    """What a job's paths hold.

    Attributes:
        train, valid: (U, I) likes.
        known: (U, I) all that users rated in train, liked or not: never recommended.
        others: what users rated in train and did not like.
        profiles: profile vectors, if the model reads any.
        identity: the data set's.
        learnt: `Dataset.identity_of` the splits in `train`, without fake pairs.
        starts: the same of what a model that this one starts from may have learnt.
    """

    train: csr_matrix
    valid: csr_matrix
    known: csr_matrix
    others: Others
    profiles: Profiles | None
    identity: str
    learnt: str
    starts: tuple[str, ...]


def trained_on(dataset: Dataset, refit: bool, noise: float, seed: int) -> csr_matrix:
    """(U, I) the pairs that a model is fitted on, fake ones included.

    Args:
        refit: train and validation together, else train.
        noise: fake pairs as a share of the true ones, drawn by `seed`.
    """
    train = dataset.matrix(*_learnt(refit))
    return with_fake_pairs(train, noise, np.random.default_rng(seed)) if noise else train


def _learnt(refit: bool) -> tuple[str, ...]:
    return (TRAIN, VALID) if refit else (TRAIN,)


def load_inputs(job: TrainJob) -> TrainInputs:
    """Read what a job needs.

    Raises:
        UserError: the data set or the vectors are missing, broken, or do not fit together.
    """
    dataset = Dataset.load(job.dataset)
    learnt = _learnt(job.refit)
    own = dataset.identity_of(*learnt)
    train = trained_on(dataset, job.refit, job.train_noise, job.train.seed)
    profiles = None
    if job.model.reads_profiles(job.grid):
        if job.profiles is None:
            raise UserError(
                f"this {job.model.backbone} model reads profile vectors but none are given: embed "
                "the profiles first, or remove its [alignment] or text_weight."
            )
        profiles = Profiles.load(job.profiles, *dataset.shape)
        if job.shuffle_profiles:
            profiles = shuffled(profiles, job.train.seed)
    return TrainInputs(
        train,
        csr_matrix(train.shape, dtype=np.float32) if job.refit else dataset.matrix(VALID),
        dataset.matrix(*learnt, opinion=None).maximum(train),
        {name: dataset.matrix(*learnt, opinion=name) for name in (DISLIKED, NEITHER)},
        profiles,
        dataset.identity(),
        own,
        (dataset.identity_of(TRAIN), own) if job.refit else (own,),
    )
