"""Profile vectors of all users and items, and the control that deals them out anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raysys.errors import UserError
from raysys.store import read_arrays


@dataclass(frozen=True)
class Profiles:
    """Profile vectors of all users and items.

    Attributes:
        users: (U, s) float32; the rows of users without a profile are never read.
        items: (I, s) float32, likewise.
        user_has_profile: (U,) bool.
        item_has_profile: (I,) bool.
    """

    users: np.ndarray
    items: np.ndarray
    user_has_profile: np.ndarray
    item_has_profile: np.ndarray

    @classmethod
    def of(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        user_has_profile: np.ndarray | None = None,
        item_has_profile: np.ndarray | None = None,
    ) -> Profiles:
        """Check vectors and complete the masks: a row with a NaN has no profile.

        Raises:
            UserError: widths differ, a mask has another length, or a value is infinite.
        """
        if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
            raise UserError(
                f"profile vectors of users {users.shape} and items {items.shape} must be two "
                "matrices of one width: embed both with the same model."
            )
        masks = []
        for name, vectors, given in (
            ("user", users, user_has_profile),
            ("item", items, item_has_profile),
        ):
            mask = ~np.isnan(vectors).any(axis=1)
            if given is not None:
                if given.shape != mask.shape:
                    raise UserError(
                        f"{name}_has_profile has shape {given.shape}, expected {mask.shape}."
                    )
                mask &= given.astype(bool)
            infinite = np.isinf(vectors).any(axis=1) & mask
            if infinite.any():
                raise UserError(
                    f"the profile vector of {name} row {infinite.argmax()} holds an infinite value."
                )
            masks.append(mask)
        return cls(users, items, masks[0], masks[1])

    @classmethod
    def load(cls, path: Path, users: int, items: int) -> Profiles:
        """Read `users`, `items` and, where present, the two masks from a safetensors file.

        Raises:
            UserError: an array is missing, or the row numbers differ from the data set's.
        """
        arrays = read_arrays(path)
        for name, rows in (("users", users), ("items", items)):
            if name not in arrays:
                raise UserError(f"{path} holds no array '{name}'.")
            if len(arrays[name]) != rows:
                raise UserError(
                    f"{path}: '{name}' has {len(arrays[name])} rows, the data set has {rows}. "
                    "Embed the profiles of this data set again."
                )
        return cls.of(
            arrays["users"],
            arrays["items"],
            arrays.get("user_has_profile"),
            arrays.get("item_has_profile"),
        )


def shuffled(profiles: Profiles, seed: int) -> Profiles:
    """The control: profiles dealt out anew among the users, and among the items, that have one.

    What an aligned model gains with these it does not gain from the meaning of the text.
    """
    rng = np.random.default_rng(seed)
    vectors = []
    for matrix, mask in (
        (profiles.users, profiles.user_has_profile),
        (profiles.items, profiles.item_has_profile),
    ):
        rows = np.flatnonzero(mask)
        dealt = matrix.copy()
        dealt[rows] = matrix[rng.permutation(rows)]
        vectors.append(dealt)
    return replace(profiles, users=vectors[0], items=vectors[1])
