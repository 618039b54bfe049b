"""The loop of every model that reads text: epochs of optimiser steps, resumable at any step.

What a step sees is decided by (seed, epoch, step) alone, so that a run that goes on from a
checkpoint ends with the bits of one that was never stopped. No Ray.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch.distributed.tensor import DTensor

from raysys.errors import UserError
from raysys.models.parameters import (
    below,
    load_optimizer_state,
    load_parameters,
    optimizer_state,
    parameters_of,
    trained,
)
from raysys.settings import Settings
from raysys.store import read_arrays, read_json, write_arrays, write_json
from raysys.training.workers import Workers

_STATE_FILE = "state.json"
_TENSORS_FILE = "state.safetensors"


class LoopSettings(Settings):
    """Optimiser, epochs and checkpoints."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's step size at the start."""
    schedule: Literal["linear", "constant"] = "linear"
    """`linear`: the step size falls to 0 over all epochs."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    clip: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this norm."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the examples, at most."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better validation figure after which training stops."""
    seed: int = Field(default=2023, ge=0)
    """Start values, order and dropout all follow from it."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""
    max_failures: int = Field(default=3, ge=0)
    """Crashes of a worker that are answered by a restart from the newest checkpoint."""


class EpochTraining(ABC):
    """One training run: model, optimiser, and how far it has come.

    Args:
        model: on its device; trained in place.
        settings: see `LoopSettings`.
        workers: this worker's place among all.

    Attributes:
        epoch, step: finished epochs, and finished steps of the next.
        history: one row an epoch: epoch (from 1), loss, and the watched figure or null.
        best_epoch, best: of the best validation so far.
    """

    #: Name of the figure that `validate` gives, and whether a larger one is better.
    watched: ClassVar[str]
    larger_is_better: ClassVar[bool] = True
    #: Where the config holds these settings.
    section: ClassVar[str]

    def __init__(self, model: Any, settings: LoopSettings, workers: Workers | None = None) -> None:
        self.model, self.settings, self.workers = model, settings, workers or Workers()
        self.epoch = self.step = self.best_epoch = self.stale = 0
        self.best: float | None = None
        self.history: list[dict[str, float | None]] = []
        self.device = next(model.parameters()).device
        self._parameters = list(trained(model).values())
        self._optimizer = torch.optim.AdamW(
            # A group is updated at once, which parts of sharded and of whole parameters cannot be.
            [{"params": group} for group in self._groups()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self._losses = torch.zeros(2, dtype=torch.float64)
        self._best = parameters_of(model)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps of an epoch."""

    @abstractmethod
    def backward(self) -> tuple[torch.Tensor, float]:
        """Add this worker's gradients of the next step's loss to the parameters.

        Returns:
            this worker's share of the loss, a float64 scalar, and the weight that the whole loss
            has in the epoch's mean.
        """

    @abstractmethod
    def validate(self) -> float | None:
        """The watched figure, the same on every worker; None where there is nothing to validate."""

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience is used up."""
        return self.epoch >= self.settings.epochs or self.stale >= self.settings.patience

    def run(self, after_step: Callable[[Self], None] | None = None) -> None:
        """Train until `finished`; `after_step` may save a checkpoint or show progress."""
        while not self.finished:
            self.train_step()
            if after_step is not None:
                after_step(self)

    def train_step(self) -> None:
        """One optimiser step; after the last of an epoch, validation.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        settings = self.settings
        left = 1 - self.done / (self.steps * settings.epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * (left if settings.schedule == "linear" else 1)
        self._optimizer.zero_grad(set_to_none=True)
        self.model.train()
        total, weight = self.backward()
        for parameters in self._groups():
            if not isinstance(parameters[0], DTensor):
                self.workers.add_up_gradients(parameters)
        self._shorten_gradients()
        self._optimizer.step()
        self.workers.add_up(total)
        if not math.isfinite(float(total)):
            raise UserError(
                f"the loss is not finite in epoch {self.epoch + 1}: lower "
                f"{self.section}.learning_rate (now {settings.learning_rate:g})."
            )
        self._losses += torch.tensor([float(total) * weight, weight])
        self.step += 1
        if self.step == self.steps:
            self._end_epoch()

    @property
    def done(self) -> int:
        """Optimiser steps so far."""
        return self.epoch * self.steps + self.step

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch so far, or of the last one."""
        if self._losses[1] > 0:
            return float(self._losses[0] / self._losses[1])
        return float(self.history[-1]["loss"] or 0.0) if self.history else math.nan

    def restore_best(self) -> None:
        """Set the parameters to those of the best epoch."""
        load_parameters(self.model, self._best, Path("the best epoch"))

    def save(self, folder: Path) -> None:
        """Write a checkpoint: safetensors and JSON. With sharding all workers must call."""
        arrays = {f"model/{name}": array for name, array in parameters_of(self.model).items()}
        arrays |= {f"best/{name}": array for name, array in self._best.items()}
        adam = optimizer_state(self.model, self._optimizer)
        arrays |= {f"adam/{name}": array for name, array in adam.items()}
        if not self.workers.first:
            return
        write_arrays(folder / _TENSORS_FILE, arrays)
        kept = ("epoch", "step", "best_epoch", "stale", "best", "history")
        state = {name: getattr(self, name) for name in kept}
        write_json(folder / _STATE_FILE, {**state, "losses": self._losses.tolist()})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same run.

        Raises:
            UserError: files are missing, broken or of another model.
        """
        state: dict[str, Any] = read_json(folder / _STATE_FILE)
        arrays, path = read_arrays(folder / _TENSORS_FILE), folder / _TENSORS_FILE
        load_parameters(self.model, below(arrays, "model/"), path)
        self._best = below(arrays, "best/")
        load_optimizer_state(self.model, self._optimizer, below(arrays, "adam/"))
        self._losses = torch.tensor(state.pop("losses"), dtype=torch.float64)
        for name, value in state.items():
            setattr(self, name, value)

    def _groups(self) -> list[list[torch.nn.Parameter]]:
        """Whole parameters, and sharded ones, whose layers add up their gradients themselves."""
        groups: dict[bool, list[torch.nn.Parameter]] = {}
        for parameter in self._parameters:
            groups.setdefault(isinstance(parameter, DTensor), []).append(parameter)
        return list(groups.values())

    def _shorten_gradients(self) -> None:
        """Scale all gradients together, so that their norm is at most `clip`."""
        groups = self._groups()
        if len(groups) == 1:
            torch.nn.utils.clip_grad_norm_(groups[0], self.settings.clip)
            return
        norms = []
        for group in groups:
            gradients = [one.grad for one in group if one.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        total = torch.stack(norms).norm()
        for group in groups:
            torch.nn.utils.clip_grads_with_norm_(group, self.settings.clip, total)

    def _end_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        found = self.validate()
        self.history.append({"epoch": self.epoch, "loss": self.loss, self.watched: found})
        self._losses.zero_()
        if found is None or self.best is None or self._better(found, self.best):
            self.best_epoch, self.best, self.stale = self.epoch, found, 0
            self._best = parameters_of(self.model)
        else:
            self.stale += 1

    def _better(self, found: float, than: float) -> bool:
        return found > than if self.larger_is_better else found < than
