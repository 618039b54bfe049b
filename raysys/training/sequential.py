"""Train SASRec on the train sequences; validation candidates decide when to stop."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from raysys.data.candidates import Candidates
from raysys.errors import UserError
from raysys.evaluation.candidates import WATCHED, question_metrics
from raysys.models.sasrec import SASRec, SASRecSettings, next_item_loss, padded

#: So many batches are drawn together and sorted by length.
_SORTED_BATCHES = 32


def train_sasrec(
    settings: SASRecSettings,
    histories: Sequence[np.ndarray],
    n_items: int,
    valid: Sequence[Candidates],
) -> SASRec:
    """The model of the best validation epoch.

    Args:
        histories: train items of each user, oldest first.
        valid: what decides the best epoch; none: the last epoch is the best.

    Raises:
        UserError: no user has two train interactions.
    """
    sequences = padded([one for one in histories if len(one) > 1], settings.length)
    if sequences.shape[0] == 0:
        raise UserError("SASRec needs users with at least two train interactions.")
    lengths = (sequences > 0).sum(dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SASRec(n_items, settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        best, kept, stale = -1.0, copy.deepcopy(model.state_dict()), 0
        for _ in range(settings.epochs):
            model.train()
            for rows in _batches(lengths, settings.batch_size):
                optimizer.zero_grad(set_to_none=True)
                batch = sequences[rows]
                width = int(lengths[rows].max())
                drawn = torch.randint(n_items, (settings.negatives,))
                torch.autograd.backward(next_item_loss(model, batch[:, :width], drawn))
                optimizer.step()
            found = _validate(model, valid) if valid else best + 1
            if found > best:
                best, kept, stale = found, copy.deepcopy(model.state_dict()), 0
            else:
                stale += 1
                if stale >= settings.patience:
                    break
    model.load_state_dict(kept)
    return model


def _batches(lengths: torch.Tensor, size: int) -> list[torch.Tensor]:
    """All rows in a random order, batches of like length: most histories are far from the longest.

    Rows are sorted by length within every few batches, and the batches are shuffled.
    """
    batches: list[torch.Tensor] = []
    for part in torch.split(torch.randperm(len(lengths)), _SORTED_BATCHES * size):
        batches += torch.split(part[lengths[part].argsort()], size)
    return [batches[place] for place in torch.randperm(len(batches)).tolist()]


def candidate_scores(model: SASRec, questions: Sequence[Candidates]) -> np.ndarray:
    """Scores of each question's items, (n, 1 + m)."""
    items = np.stack([question.items for question in questions])
    scores: np.ndarray = model.score([one.history for one in questions], items).numpy()
    return scores


def _validate(model: SASRec, questions: Sequence[Candidates]) -> float:
    targets = [question.target for question in questions]
    found = question_metrics(candidate_scores(model, questions), targets, [10])
    return float(found[WATCHED].mean())
