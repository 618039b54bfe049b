"""What each step of the graph-attentive language model learns, drawn by (seed, epoch, step) alone.

"LLM-Enhanced User-Item Interactions", sections 3.3 and 3.4. Everything is of train interactions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.relations import Relations
from raysys.models.graph_lm import GraphLM, PromptBatch, as_batch
from raysys.schema import TRAIN
from raysys.text.graph_prompts import GraphPrompts
from raysys.training.graph_lm_settings import PredictStep, StepSettings

#: Batches whose prompts are sorted by length together.
_WINDOW = 16


@dataclass(frozen=True)
class Lesson:
    """A worker's share of a step.

    Attributes:
        batch: the prompts.
        total: what the whole step's loss is a mean over: tokens, or prompts.
        words: whether next tokens that are words count (Eq. 5).
        rows, items: (n,) which items are right for which prompts (Eq. 6); none: next tokens.
        seed: of what the loss draws.
    """

    batch: PromptBatch
    total: int
    seed: int
    words: bool = True
    rows: np.ndarray | None = None
    items: np.ndarray | None = None

    def loss(self, model: GraphLM, device: torch.device) -> torch.Tensor:
        """The share of the mean loss."""
        generator, batch = torch.Generator().manual_seed(self.seed), self.batch.to(device)
        if self.rows is None or self.items is None:
            return model.next_token_loss(batch, generator, self.words) / self.total
        rows, items = (torch.from_numpy(one).to(device) for one in (self.rows, self.items))
        return model.item_loss(batch, rows, items, generator).sum() / self.total


class Lessons(ABC):
    """Prompts to learn from.

    Args:
        settings: of the step.
        count: how many prompts an epoch goes through; an attribute too.
    """

    def __init__(self, settings: StepSettings, count: int) -> None:
        self._settings, self.count = settings, count
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.count // self._settings.batch_size)

    def chosen(self, epoch: int, step: int) -> np.ndarray:
        """The places of an optimiser step's prompts."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(self._rng(epoch))
        size = self._settings.batch_size
        return self._order[step * size : (step + 1) * size]

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The order of an epoch."""
        return rng.permutation(self.count)

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, *numbers])

    def _seed(self, epoch: int, step: int, worker: int) -> int:
        return int(self._rng(epoch, step, worker, 2).integers(1 << 31))

    @abstractmethod
    def batch(self, epoch: int, step: int, worker: int, workers: int) -> Lesson | None:
        """A worker's share of a step; None: there is nothing for it."""


class Crowd(Lessons):
    """Step 1: crowd contextual prompts, in batches of like length.

    Args:
        prompts: tokens of each.
    """

    def __init__(
        self,
        settings: StepSettings,
        prompts: Sequence[np.ndarray],
        writer: GraphPrompts,
        relations: Relations,
    ) -> None:
        if not prompts:
            raise UserError(
                "there is no crowd contextual prompt: take 'crowd' out of graph_lm.steps, or name "
                "columns in [graph_lm.crowd_prompts]."
            )
        super().__init__(settings, len(prompts))
        self._prompts, self._words, self._relations = prompts, writer.words, relations
        self._lengths = np.array([len(one) for one in prompts])
        first_item = writer.words + writer.users
        # Tokens that are predicted: all but the first and users.
        self._asked = np.array(
            [int(((one[1:] < writer.words) | (one[1:] >= first_item)).sum()) for one in prompts]
        )

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Shuffled; within a window by length, whose batches then are shuffled."""
        places = rng.permutation(self.count)
        size = self._settings.batch_size
        batches = []
        for start in range(0, len(places), size * _WINDOW):
            window = places[start : start + size * _WINDOW]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches += [window[first : first + size] for first in range(0, len(window), size)]
        # A short batch stays last, so that batches begin at multiples of the size.
        full = [batch for batch in batches if len(batch) == size]
        short = [batch for batch in batches if len(batch) < size]
        shuffled = [full[place] for place in rng.permutation(len(full))]
        return np.concatenate([*shuffled, *short])

    def batch(self, epoch: int, step: int, worker: int, workers: int) -> Lesson | None:
        """A worker's share of a step."""
        chosen = self.chosen(epoch, step)
        mine = chosen[worker::workers]
        if not len(mine):
            return None
        prompts = [self._prompts[place] for place in mine]
        batch = as_batch(prompts, self._words, self._relations.of)
        total = max(1, int(self._asked[chosen].sum()))
        return Lesson(batch, total, self._seed(epoch, step, worker))


class Histories(Lessons):
    """Users with their train items, shuffled anew in each epoch.

    Args:
        dataset: whose train interactions are read.
        least: items that a user needs.
    """

    def __init__(
        self,
        settings: StepSettings,
        dataset: Dataset,
        writer: GraphPrompts,
        relations: Relations,
        least: int,
    ) -> None:
        self._histories = dataset.histories(TRAIN)
        self._users = np.array(
            [user for user, own in enumerate(self._histories) if len(own) >= least], np.int64
        )
        if not len(self._users):
            raise UserError(f"no user has {least} train interactions: there is nothing to learn.")
        super().__init__(settings, len(self._users))
        self._writer, self._relations = writer, relations

    def _drawn(self, epoch: int, user: int) -> np.ndarray:
        """A user's items in the order of this epoch."""
        drawn: np.ndarray = self._rng(epoch, user, 1).permutation(self._histories[user])
        return drawn


class Interactions(Histories):
    """Step 2: "a user has interacted with" and the items, each predicted from those before it."""

    def __init__(
        self, settings: StepSettings, dataset: Dataset, writer: GraphPrompts, relations: Relations
    ) -> None:
        super().__init__(settings, dataset, writer, relations, least=1)

    def batch(self, epoch: int, step: int, worker: int, workers: int) -> Lesson | None:
        """A worker's share of a step."""
        users = self._users[self.chosen(epoch, step)]
        mine = users[worker::workers].tolist()
        if not mine:
            return None
        prompts = [self._writer.history(user, self._drawn(epoch, user)) for user in mine]
        batch = as_batch(prompts, self._writer.words, self._relations.of_history)
        room = self._writer.longest_history
        total = sum(min(len(self._histories[user]), room) for user in users.tolist())
        return Lesson(batch, total, self._seed(epoch, step, worker), words=False)


class Predict(Histories):
    """Step 3: a share of the history is hidden, and the rest asks for the items."""

    _settings: PredictStep

    def __init__(
        self, settings: PredictStep, dataset: Dataset, writer: GraphPrompts, relations: Relations
    ) -> None:
        super().__init__(settings, dataset, writer, relations, least=2)

    def batch(self, epoch: int, step: int, worker: int, workers: int) -> Lesson | None:
        """A worker's share of a step."""
        users = self._users[self.chosen(epoch, step)]
        mine = users[worker::workers].tolist()
        if not mine:
            return None
        prompts, targets = [], []
        for user in mine:
            items = self._drawn(epoch, user)
            hidden = int(
                np.clip(round(len(items) * self._settings.hidden_share), 1, len(items) - 1)
            )
            prompts.append(question(self._writer, user, items[hidden:]))
            targets.append(items[:hidden] if self._settings.targets == "hidden" else items)
        batch = as_batch(prompts, self._writer.words, self._relations.of_history)
        rows = np.repeat(np.arange(len(mine)), [len(one) for one in targets])
        seed = self._seed(epoch, step, worker)
        return Lesson(batch, len(users), seed, rows=rows, items=np.concatenate(targets))


def question(writer: GraphPrompts, user: int, items: Sequence[int] | np.ndarray) -> list[int]:
    """A personalised predictive prompt (Figure 3)."""
    return writer.history(user, items) + writer.trigger
