"""The lists that were measured on test, kept so that any of them can be measured again together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raysys.errors import UserError
from raysys.store import read_arrays, write_arrays

TEST_LISTS_FILE = "test_lists.safetensors"
_USERS = "users"


def write_test_lists(folder: Path, users: np.ndarray, lists: Mapping[str, np.ndarray]) -> None:
    """Write `TEST_LISTS_FILE` into a stage's folder.

    Args:
        users: (n,) user rows.
        lists: recommender → (n, k) item rows, best first; -1 fills the end of a short one.
    """
    arrays = {f"list.{name}": items.astype(np.int32) for name, items in lists.items()}
    write_arrays(folder / TEST_LISTS_FILE, {_USERS: users.astype(np.int32), **arrays})


def read_test_lists(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """User rows (n,) and the lists (n, k) of one recommender.

    Raises:
        UserError: no such file, or no lists of that name in it.
    """
    arrays = read_arrays(folder / TEST_LISTS_FILE)
    if f"list.{name}" not in arrays:
        known = sorted(key.removeprefix("list.") for key in arrays if key != _USERS)
        raise UserError(f"{folder / TEST_LISTS_FILE} has no lists of '{name}', but {known}.")
    return arrays[_USERS].astype(np.int64), arrays[f"list.{name}"].astype(np.int64)
