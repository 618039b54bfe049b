"""The profile vectors of nodes, where training reads them from: memory, or a mapped file."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

#: Up to this size the vectors are copied to where they are used; above it, rows are read
#: from the mapped file as batches need them.
RESIDENT_BYTES = 4 << 30


class NodeTexts:
    """Profile vectors of one side (users or items), or of all nodes, by place.

    Nodes without a profile have no place, so no loss can reach their vectors.

    Args:
        matrix: (n, s) float32, which may be a mapped file.
        mask: (n,) bool, which rows are profiles.
        device: where the vectors are used.
        dtype: what they are multiplied as.

    Attributes:
        rows: (m,) node rows that have a profile, ascending.
        nulls: how many have none.
    """

    def __init__(
        self, matrix: np.ndarray, mask: np.ndarray, device: torch.device, dtype: torch.dtype
    ) -> None:
        found = np.flatnonzero(mask)
        place = np.full(len(mask), -1, dtype=np.int64)
        place[found] = np.arange(len(found))
        self.rows = torch.from_numpy(found).to(device)
        self.nulls = len(mask) - len(found)
        self._place = torch.from_numpy(place).to(device)
        self._matrix = matrix
        self._found = found
        self._device, self._dtype = device, dtype

    def __len__(self) -> int:
        return len(self._found)

    @cached_property
    def all(self) -> torch.Tensor:
        """(m, s) all vectors, kept."""
        matrix = self._matrix if self.nulls == 0 else self._matrix[self._found]
        return torch.from_numpy(matrix).to(self._device, self._dtype)

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """(k,) places -> (k, s) vectors."""
        if len(self) * self._matrix.shape[1] * self._dtype.itemsize <= RESIDENT_BYTES:
            return self.all.index_select(0, places)
        rows = self._matrix[self._found[places.cpu().numpy()]]
        return torch.from_numpy(rows).to(self._device, self._dtype)

    def unique(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes of a batch that have a profile, each once.

        Args:
            nodes: (B,) node rows, repeats allowed.

        Returns:
            (k,) places, ascending, and (k,) float counts in the batch.
        """
        places = self._place[nodes]
        found, counts = torch.unique(places[places >= 0], return_counts=True)
        return found, counts.float()
