"""Profile vectors of all users and items, and the control that deals them out anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.store import map_arrays

#: Rows looked at together: vectors may be larger than memory.
BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Profiles:
    """Profile vectors of all users and items.

    Attributes:
        users: (U, s) float32; the rows of users without a profile are never read.
        items: (I, s) float32, likewise.
        user_has_profile: (U,) bool.
        item_has_profile: (I,) bool.
        variance_kept: share of the variance of the vectors as made that is left; below 1
            only after `reduced`.
    """

    users: np.ndarray
    items: np.ndarray
    user_has_profile: np.ndarray
    item_has_profile: np.ndarray
    variance_kept: float = 1.0

    @classmethod
    def of(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        user_has_profile: np.ndarray | None = None,
        item_has_profile: np.ndarray | None = None,
    ) -> Profiles:
        """Check vectors and complete the masks: a row with a NaN has no profile.

        float32 vectors are kept as they are, in memory or mapped from a file; of another
        type, float32 copies are made in memory.

        Raises:
            UserError: widths differ, a mask has another length, or a value is infinite.
        """
        if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
            raise UserError(
                f"profile vectors of users {users.shape} and items {items.shape} must be two "
                "matrices of one width: embed both with the same model."
            )
        users, user_has_profile = _checked("user", users, user_has_profile)
        items, item_has_profile = _checked("item", items, item_has_profile)
        return cls(users, items, user_has_profile, item_has_profile)

    @classmethod
    def load(cls, path: Path, users: int, items: int) -> Profiles:
        """Map `users`, `items` and, where present, the two masks from a safetensors file.

        float32 vectors stay on disk: they are read once for the checks, in blocks, and then
        where they are used. float16 vectors are converted into memory.

        Raises:
            UserError: an array is missing, the row numbers differ from the data set's, or
                what `of` refuses.
        """
        arrays = map_arrays(path)
        for name, rows in (("users", users), ("items", items)):
            if name not in arrays:
                raise UserError(f"{path} holds no array '{name}'.")
            found = arrays[name].shape[0] if arrays[name].ndim else 0
            if found != rows:
                raise UserError(
                    f"{path}: '{name}' has {found} rows, the data set has {rows}. "
                    "Embed the profiles of this data set again."
                )
        return cls.of(
            arrays["users"],
            arrays["items"],
            arrays.get("user_has_profile"),
            arrays.get("item_has_profile"),
        )

    def reduced(self, width: int) -> Profiles:
        """The vectors on their `width` main axes: PCA over all users and items with a profile.

        Axes and mean are those of users and items together, computed in float64 in blocks of
        rows, and each axis points to where its largest component is positive, so that a
        machine gives the same vectors every time. Rows without a profile become zero; the
        masks stay. `variance_kept` says how much of the variance the axes hold.

        Args:
            width: from 1 to s - 1, and at most the number of profiles.

        Returns:
            Profiles of (U, width) and (I, width) float32, in memory.

        Raises:
            UserError: `width` is outside these bounds.
        """
        present = self.users.shape[1]
        count = int(self.user_has_profile.sum() + self.item_has_profile.sum())
        if not 1 <= width < present:
            raise UserError(
                f"profile vectors of width {present} cannot be reduced to {width}: "
                f"choose a width from 1 to {present - 1}."
            )
        if width > count:
            raise UserError(
                f"{count} profiles do not span {width} axes: choose a width of at most {count}."
            )
        mean = sum((rows.sum(axis=0) for rows in self._known()), np.zeros(present)) / count
        covariance = np.zeros((present, present))
        for rows in self._known():
            rows -= mean
            covariance += rows.T @ rows
        variances, axes = np.linalg.eigh(covariance / count)
        variances, axes = variances[::-1].clip(0), axes[:, ::-1][:, :width]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(width)])
        total = float(variances.sum())
        kept = float(variances[:width].sum()) / total if total else 1.0
        return replace(
            self,
            users=_projected(self.users, self.user_has_profile, mean, axes),
            items=_projected(self.items, self.item_has_profile, mean, axes),
            variance_kept=self.variance_kept * kept,
        )

    def _known(self) -> Iterator[np.ndarray]:
        """The vectors of all users and items with a profile in blocks, float64."""
        for matrix, mask in (
            (self.users, self.user_has_profile),
            (self.items, self.item_has_profile),
        ):
            for block in _blocks(len(matrix)):
                yield matrix[block][mask[block]].astype(np.float64)


def shuffled(profiles: Profiles, seed: int) -> Profiles:
    """The control: profiles dealt out anew among the users, and among the items, that have one.

    What an aligned model gains with these it does not gain from the meaning of the text.
    The vectors are copied into memory.
    """
    rng = np.random.default_rng(seed)
    vectors = []
    for matrix, mask in (
        (profiles.users, profiles.user_has_profile),
        (profiles.items, profiles.item_has_profile),
    ):
        rows = np.flatnonzero(mask)
        source = np.arange(len(matrix))
        source[rows] = rng.permutation(rows)
        vectors.append(matrix[source])
    return replace(profiles, users=vectors[0], items=vectors[1])


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def _checked(
    name: str, vectors: np.ndarray, given: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors as float32, and (n,) bool: which rows have a profile."""
    expected = (len(vectors),)
    if given is not None and given.shape != expected:
        raise UserError(f"{name}_has_profile has shape {given.shape}, expected {expected}.")
    mask = np.ones(expected, bool) if given is None else given.astype(bool)
    single = vectors if vectors.dtype == np.float32 else np.zeros(vectors.shape, np.float32)
    for block in _blocks(len(vectors)):
        if not mask[block].any():
            continue  # a side without profiles is not even read from disk
        if single is not vectors:
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
                single[block] = vectors[block]
        odd = np.flatnonzero(mask[block] & ~np.isfinite(single[block]).all(axis=1)) + block.start
        infinite = odd[~np.isnan(single[odd]).any(axis=1)]
        if len(infinite):
            raise UserError(
                f"the profile vector of {name} row {infinite[0]} holds an infinite value."
            )
        mask[odd] = False
    return single, mask


def _projected(
    matrix: np.ndarray, mask: np.ndarray, mean: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """(n, s) -> (n, width) float32; rows without a profile are zero."""
    out = np.zeros((len(matrix), axes.shape[1]), np.float32)
    for block in _blocks(len(matrix)):
        known = mask[block]
        out[block][known] = (matrix[block][known] - mean) @ axes
    return out


def with_users_from_items(profiles: Profiles, train: csr_matrix) -> Profiles:
    """Users without a profile get the mean of their train items' vectors, at length 1.

    Args:
        profiles: of the same users and items as train.
        train: (U, I); every stored non-zero entry is one interaction.

    Returns:
        The same items; a user stays without a profile only where no train item has one.
    """
    mask = profiles.item_has_profile.astype(np.float32)
    items = np.where(profiles.item_has_profile[:, None], profiles.items, np.float32(0))
    pattern = (train != 0).astype(np.float32)
    sums = pattern @ items
    found = (pattern @ mask) > 0
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    missing = ~profiles.user_has_profile
    users = np.where(missing[:, None], sums / np.maximum(norms, 1e-12), profiles.users)
    return replace(profiles, users=users, user_has_profile=profiles.user_has_profile | found)
