from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.models import profiles as module
from raysys.models.profiles import Profiles, shuffled, with_users_from_items
from raysys.store import write_arrays

USERS, ITEMS, WIDTH = 23, 31, 6


def some(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.array([5, 3, 2, 1, 0.5, 0.1])
    return (rng.normal(size=(rows, WIDTH)) * spread + 1).astype(np.float32)


@pytest.fixture
def given() -> Profiles:
    users, items = some(USERS, 1), some(ITEMS, 2)
    users[3] = np.nan
    items[5, 2] = np.nan
    masked = np.ones(ITEMS, np.uint8)
    masked[7] = 0
    items[7] = np.inf
    return Profiles.of(users, items, None, masked)


@pytest.fixture(params=[4, 8192])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", request.param)


@pytest.mark.usefixtures("block_rows")
def test_rows_with_nan_are_null_and_masked_rows_are_not_looked_at(given: Profiles) -> None:
    assert np.flatnonzero(~given.user_has_profile).tolist() == [3]
    assert np.flatnonzero(~given.item_has_profile).tolist() == [5, 7]
    assert given.variance_kept == 1


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("kind", [np.float16, np.float64, np.float32])
def test_an_infinite_value_is_refused_with_its_row(kind: type) -> None:
    items = some(ITEMS, 2).astype(kind)
    items[29, 1] = -np.inf
    with pytest.raises(UserError, match="item row 29 holds an infinite"):
        Profiles.of(some(USERS, 1), items)


def test_a_value_beyond_float32_counts_as_infinite() -> None:
    with pytest.raises(UserError, match="user row 0 holds an infinite"):
        Profiles.of(np.full((1, 2), 1e300), np.zeros((1, 2)))


@pytest.mark.usefixtures("block_rows")
def test_other_types_become_float32() -> None:
    users, items = some(USERS, 1).astype(np.float16), some(ITEMS, 2).astype(np.float64)
    profiles = Profiles.of(users, items)
    assert profiles.users.dtype == profiles.items.dtype == np.float32
    np.testing.assert_array_equal(profiles.users, users.astype(np.float32))
    np.testing.assert_array_equal(profiles.items, items.astype(np.float32))


def test_large_vectors_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    rows, width = 40_000, 128
    write_arrays(
        path,
        {
            "users": np.ones((rows, width), np.float32),
            "items": np.zeros((rows, width), np.float32),
            "item_has_profile": np.zeros(rows, np.uint8),
        },
    )
    tracemalloc.start()
    try:
        profiles = Profiles.load(path, rows, rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of one side: its vectors would be 20 MB, a mask over all its values 5, one block's mask 1.
    assert peak < rows * width / 2
    assert profiles.users.shape == (rows, width)
    assert profiles.user_has_profile.all()
    assert not profiles.item_has_profile.any()
    profiles.users[0] = 2  # a copy of the page, not the file
    assert (Profiles.load(path, rows, rows).users[0] == 1).all()


def test_float16_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    users, items = some(USERS, 1).astype(np.float16), some(ITEMS, 2).astype(np.float16)
    users[2, 0] = np.nan
    write_arrays(path, {"users": users, "items": items})
    loaded = Profiles.load(path, USERS, ITEMS)
    assert loaded.items.dtype == np.float32
    np.testing.assert_array_equal(loaded.items, items.astype(np.float32))
    assert np.flatnonzero(~loaded.user_has_profile).tolist() == [2]


@pytest.mark.parametrize("users", [np.zeros((), np.float32), np.zeros(USERS, np.float32)])
def test_arrays_that_are_no_matrix_are_refused(tmp_path: Path, users: np.ndarray) -> None:
    path = tmp_path / "vectors.safetensors"
    write_arrays(path, {"users": users, "items": some(ITEMS, 2)})
    with pytest.raises(UserError, match=r"'users' has 0 rows|two matrices of one width"):
        Profiles.load(path, USERS, ITEMS)


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("width", [1, 3, 5])
def test_reduced_is_the_svd_of_the_centred_vectors(given: Profiles, width: int) -> None:
    users, items = given.users[given.user_has_profile], given.items[given.item_has_profile]
    everything = np.concatenate([users, items]).astype(np.float64)
    left, sizes, axes = np.linalg.svd(everything - everything.mean(axis=0), full_matrices=False)
    reduced = given.reduced(width)
    ours = np.concatenate(
        [reduced.users[given.user_has_profile], reduced.items[given.item_has_profile]]
    )
    theirs = (left * sizes)[:, :width]
    peaks = axes[np.arange(width), np.abs(axes[:width]).argmax(axis=1)]
    np.testing.assert_allclose(ours, theirs * np.sign(peaks), atol=1e-5)
    share = (sizes[:width] ** 2).sum() / (sizes**2).sum()
    assert reduced.variance_kept == pytest.approx(share)


@pytest.mark.usefixtures("block_rows")
def test_reduced_keeps_masks_types_and_null_rows(given: Profiles) -> None:
    before = given.users.copy(), given.items.copy()
    reduced = given.reduced(2)
    assert reduced.users.dtype == reduced.items.dtype == np.float32
    assert (reduced.users.shape, reduced.items.shape) == ((USERS, 2), (ITEMS, 2))
    np.testing.assert_array_equal(reduced.user_has_profile, given.user_has_profile)
    np.testing.assert_array_equal(reduced.item_has_profile, given.item_has_profile)
    assert not reduced.users[3].any()
    assert not reduced.items[[5, 7]].any()
    np.testing.assert_array_equal(given.users, before[0])
    np.testing.assert_array_equal(given.items, before[1])


def test_reduced_gives_the_same_bytes_again(given: Profiles) -> None:
    one, two = given.reduced(3), given.reduced(3)
    assert one.users.tobytes() == two.users.tobytes()
    assert one.items.tobytes() == two.items.tobytes()


def test_reduced_twice_is_reduced_once_and_the_shares_multiply(given: Profiles) -> None:
    once, twice = given.reduced(2), given.reduced(4).reduced(2)
    np.testing.assert_allclose(np.abs(twice.users), np.abs(once.users), atol=1e-5)
    assert twice.variance_kept == pytest.approx(once.variance_kept)
    assert 0 < once.variance_kept < given.reduced(4).variance_kept < 1


def test_reduced_with_one_side_only() -> None:
    profiles = Profiles.of(np.full((USERS, WIDTH), np.nan), some(ITEMS, 2))
    reduced = profiles.reduced(2)
    assert not reduced.user_has_profile.any()
    assert not reduced.users.any()
    assert reduced.items.std() > 1


def test_vectors_that_do_not_vary_lose_nothing() -> None:
    profiles = Profiles.of(np.ones((3, WIDTH)), np.ones((4, WIDTH)))
    assert profiles.reduced(2).variance_kept == 1


def test_reduced_refuses_widths_that_are_none(given: Profiles) -> None:
    for width in (0, WIDTH, WIDTH + 1):
        with pytest.raises(UserError, match=rf"width {WIDTH} cannot be reduced to {width}:"):
            given.reduced(width)
    few = Profiles.of(some(1, 1), some(2, 2))
    with pytest.raises(UserError, match="3 profiles do not span 4 axes"):
        few.reduced(4)


def test_shuffled_deals_out_what_is_there_and_copies_it_once(given: Profiles) -> None:
    dealt = shuffled(given.reduced(2), seed=4)
    assert dealt.variance_kept == given.reduced(2).variance_kept
    rows = 20_000
    large = Profiles.of(np.ones((rows, 64), np.float32), np.zeros((2, 64), np.float32))
    tracemalloc.start()
    try:
        shuffled(large, seed=4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * large.users.nbytes


def test_profiles_from_a_file(tmp_path: Path) -> None:
    path, users, items = tmp_path / "profiles.safetensors", some(USERS, 1), some(ITEMS, 2)
    users[3] = items[5] = np.nan
    mask = np.ones(USERS, dtype=np.uint8)
    mask[0] = 0
    write_arrays(path, {"users": users, "items": items, "user_has_profile": mask})
    loaded = Profiles.load(path, USERS, ITEMS)
    assert np.flatnonzero(~loaded.user_has_profile).tolist() == [0, 3]
    assert np.flatnonzero(~loaded.item_has_profile).tolist() == [5]
    with pytest.raises(UserError, match=r"'items' has 31 rows, the data set has 32"):
        Profiles.load(path, USERS, ITEMS + 1)
    write_arrays(path, {"users": users})
    with pytest.raises(UserError, match="no array 'items'"):
        Profiles.load(path, USERS, ITEMS)


def test_bad_profiles() -> None:
    good = Profiles.of(some(USERS, 1), some(ITEMS, 2))
    with pytest.raises(UserError, match="one width"):
        Profiles.of(good.users, good.items[:, :4])
    with pytest.raises(UserError, match="user_has_profile has shape"):
        Profiles.of(good.users, good.items, np.ones(3, dtype=bool))
    good.items[2, 1] = np.inf
    with pytest.raises(UserError, match="item row 2 holds an infinite"):
        Profiles.of(good.users, good.items)


def test_users_without_a_profile_get_the_mean_of_their_train_items(given: Profiles) -> None:
    train = np.zeros((USERS, ITEMS), np.float32)
    train[3, [0, 1, 5]] = 1  # item 5 has no vector
    train[4, 0] = 1  # user 4 has a profile of its own
    nobody = Profiles.of(given.users, given.items, np.arange(USERS) == 4, given.item_has_profile)
    found = with_users_from_items(nobody, csr_matrix(train))
    mean = given.items[0] + given.items[1]
    np.testing.assert_allclose(found.users[3], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_array_equal(found.users[4], given.users[4])
    assert np.flatnonzero(found.user_has_profile).tolist() == [3, 4]
