from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.models.profiles import Profiles
from raysys.runs import run_stage
from raysys.schema import INTERACTIONS_FILE, ITEMS_FILE, USERS_FILE
from raysys.stages import embed, profiles
from raysys.stages.context import RunContext, RunSettings
from raysys.store import write_table
from raysys.text import vectors as module
from raysys.text.embeddings import VECTORS_FILE
from raysys.text.vectors import read_vectors

ITEMS, USERS = 20, 7
ITEM_IDS = np.array([str(100 + row) for row in range(ITEMS)], dtype=object)
USER_IDS = np.array([f"u{row}" for row in range(USERS)], dtype=object)
#: Row i holds 10 i, 10 i + 1, 10 i + 2.
MATRIX = (10 * np.arange(ITEMS)[:, None] + np.arange(3)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 6)


def write(path, ids, vectors, name="item_id", kind=None):
    vectors = vectors if isinstance(vectors, pa.Array) else pa.array(vectors, kind)
    write_table(path, pa.table({name: ids, "vector": vectors}))
    return path


def read_items(path):
    return read_vectors(path, "item_id", ITEM_IDS)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16(), 3),
        pa.list_(pa.int64()),
        pa.list_(pa.uint8()),
    ],
    ids=str,
)
def test_vectors_come_in_the_order_of_the_data_set_whatever_their_type(tmp_path, kind):
    order = np.random.default_rng(0).permutation(ITEMS)
    rows = [None if row == 4 else MATRIX[row].astype(int).tolist() for row in order]
    found = read_items(write(tmp_path / "v.parquet", ITEM_IDS[order], pa.array(rows, kind)))
    expected = MATRIX.copy()
    expected[4] = 0
    np.testing.assert_array_equal(found.values, expected)
    assert found.values.dtype == np.float32
    assert np.flatnonzero(~found.known).tolist() == [4]
    assert (found.nan, found.unknown) == (0, 0)


def test_tensor_columns_are_lists(tmp_path):
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(MATRIX)
    found = read_items(write(tmp_path / "v.parquet", ITEM_IDS, tensor))
    np.testing.assert_array_equal(found.values, MATRIX)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(range(100, 120), pa.int32()),
        pa.array(np.arange(100.0, 120.0)),
        pa.array(ITEM_IDS, pa.large_string()),
        pa.array(ITEM_IDS).dictionary_encode(),
        pa.array(range(100, 120), pa.int64()).dictionary_encode(),
        pa.array([f" {one}" for one in ITEM_IDS]),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_any_type_are_compared_as_text(tmp_path, ids):
    found = read_items(write(tmp_path / "v.parquet", ids, MATRIX.tolist()))
    np.testing.assert_array_equal(found.values, MATRIX)


def test_unknown_missing_null_and_nan_are_counted(tmp_path):
    ids = ["new", "older", *ITEM_IDS[:10]]
    rows = [[1.0], None, *MATRIX[:10].tolist()]  # vectors of unknown ids are not looked at
    rows[3] = [1.0, np.nan, 2.0]
    rows[4] = [1.0, None, np.inf]
    rows[5] = None
    found = read_items(write(tmp_path / "v.parquet", ids, rows))
    assert (found.unknown, found.nan) == (2, 2)
    assert np.flatnonzero(found.known).tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert not found.values[[1, 2, 3, *range(10, 20)]].any()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            {"ids": ["100", *ITEM_IDS[:-1]]},
            r"column 'item_id': 1 id\(s\) more than once: '100'\. Keep one row",
        ),
        ({"ids": [*ITEM_IDS[:10], *ITEM_IDS[:10]]}, "10 id.*'100', '101', .*'104' and others"),
        (
            {"ids": [f"B{row}" for row in range(ITEMS)]},
            "has 'B0', .*'B4' and others; .* '100', '101'",
        ),
        ({"ids": [None, *ITEM_IDS[1:]]}, "row 1, column 'item_id': the value is missing"),
        ({"rows": {13: [1.0]}}, "'113' do not have the 3 numbers"),
        ({"rows": {2: [1.0] * 4, 3: []}}, "'102', '103' do not have the 3 numbers"),
        ({"rows": {row: [] for row in range(ITEMS)}}, "'100' is empty"),
        ({"rows": {19: [0.0, np.inf, 0.0]}}, "'119' hold an infinite"),
        ({"rows": {7: [1e300, 0.0, 0.0]}}, "'107' hold an infinite number, or one too large"),
        ({"rows": dict.fromkeys(range(ITEMS))}, "holds no vector"),
        ({"rows": dict.fromkeys(range(ITEMS), [np.nan] * 3)}, "holds no vector"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, word):
    rows = MATRIX.tolist()
    for row, vector in change.get("rows", {}).items():
        rows[row] = vector
    path = tmp_path / "v.parquet"
    write(path, change.get("ids", ITEM_IDS), rows, kind=pa.list_(pa.float64()))
    with pytest.raises(UserError, match=word) as caught:
        read_items(path)
    assert str(path) in str(caught.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "v.parquet"
    with pytest.raises(UserError, match=r"v\.parquet does not exist"):
        read_items(path)
    path.write_text("item_id,vector")
    with pytest.raises(UserError, match=r"v\.parquet is not a readable parquet file"):
        read_items(path)
    write(path, ITEM_IDS, MATRIX.tolist(), name="asin")
    with pytest.raises(UserError, match="must have one column 'item_id'; its columns are: asin"):
        read_items(path)
    write(path, ITEM_IDS, ["1 2 3"] * ITEMS)
    with pytest.raises(UserError, match="'vector': has type string, not lists of numbers"):
        read_items(path)
    write(path, ITEM_IDS, [["a"]] * ITEMS)
    with pytest.raises(UserError, match=r"has type list<.*string>, not lists of numbers"):
        read_items(path)
    write(path, pa.array([], pa.string()), [], kind=pa.list_(pa.float32()))
    with pytest.raises(UserError, match="has no rows"):
        read_items(path)


def context_with(tmp_path, **paths):
    """A run whose data stage has finished, and whose config gives vectors."""

    def data(output):
        pairs = [(user, item) for user in USER_IDS for item in ITEM_IDS[:3]]
        users, items = zip(*pairs, strict=True)
        rows = {"user_id": users, "item_id": items, "split": ["train"] * len(pairs)}
        write_table(output / INTERACTIONS_FILE, pa.table(rows))
        write_table(output / ITEMS_FILE, pa.table({"item_id": ITEM_IDS, "title": ITEM_IDS}))
        write_table(output / USERS_FILE, pa.table({"user_id": USER_IDS}))
        return StageReport()

    settings = RunSettings(
        out=tmp_path / "run",
        data={"interactions": "i.csv", "items": "i.csv"},
        embeddings=paths,
        models={"m": {"backbone": "lightgcn"}},
    )
    run_stage(tmp_path / "run" / "data", "data", {}, {}, data)
    context = RunContext(settings)
    context.resources = None  # whoever asked for Ray would fail
    return context


def test_items_alone_need_the_data_stage_alone(tmp_path):
    path = write(tmp_path / "v.parquet", ["?", *ITEM_IDS[:15]], [[9.0], *MATRIX[:15].tolist()])
    context = context_with(tmp_path, item_vectors=path)
    manifest, skipped = embed.run(context)
    assert not skipped
    assert manifest.counts == {"in": USERS + ITEMS, "ok": 15, "dead_letter": USERS + 5}
    assert manifest.dropped == {"no_vector": USERS + 5, "unknown_id": 1}
    assert manifest.figures == {"width": 3, "users_from_items": 0}
    assert manifest.inputs.keys() == {"data", "item_vectors"}
    loaded = Profiles.load(context.run.path("embeddings") / VECTORS_FILE, USERS, ITEMS)
    assert not loaded.user_has_profile.any()
    assert loaded.item_has_profile.sum() == 15
    np.testing.assert_array_equal(loaded.items[:15], MATRIX[:15])


def test_users_get_the_mean_of_their_train_items_where_asked(tmp_path):
    path = write(tmp_path / "v.parquet", ITEM_IDS, MATRIX.tolist())
    context = context_with(tmp_path, item_vectors=path, users_from_items=True)
    manifest, _ = embed.run(context)
    train = context.dataset.matrix("train").toarray()
    trained = train.sum(axis=1) > 0
    assert manifest.figures["users_from_items"] == trained.sum() > 0
    loaded = Profiles.load(context.run.path("embeddings") / VECTORS_FILE, USERS, ITEMS)
    assert np.array_equal(loaded.user_has_profile, trained)
    sums = train @ MATRIX
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.users[trained], expected[trained], rtol=1e-5)


def test_both_sides_and_a_changed_file(tmp_path):
    users = write(tmp_path / "u.parquet", USER_IDS, MATRIX[:USERS].tolist(), name="user_id")
    items = write(tmp_path / "v.parquet", ITEM_IDS, MATRIX.tolist())
    context = context_with(tmp_path, user_vectors=users, item_vectors=items)
    manifest, _ = embed.run(context)
    assert manifest.counts == {"in": USERS + ITEMS, "ok": USERS + ITEMS, "dead_letter": 0}
    assert manifest.dropped == {}
    assert embed.run(context) == (manifest, True)
    changed = MATRIX[:USERS].tolist()
    changed[0][0] = np.nan
    write(users, USER_IDS, changed, name="user_id")
    manifest, skipped = embed.run(context)
    assert not skipped
    assert manifest.dropped == {"nan_vector": 1}
    loaded = Profiles.load(context.run.path("embeddings") / VECTORS_FILE, USERS, ITEMS)
    assert np.flatnonzero(~loaded.user_has_profile).tolist() == [0]


def test_two_widths_are_refused(tmp_path):
    users = write(tmp_path / "u.parquet", USER_IDS, [[1.0, 2.0]] * USERS, name="user_id")
    items = write(tmp_path / "v.parquet", ITEM_IDS, MATRIX.tolist())
    with pytest.raises(UserError, match=r"u\.parquet has 2, .*v\.parquet has 3"):
        embed.run(context_with(tmp_path, user_vectors=users, item_vectors=items))


def test_a_missing_file_is_refused_and_no_profile_is_written(tmp_path):
    context = context_with(tmp_path, item_vectors=tmp_path / "gone.parquet")
    with pytest.raises(UserError, match=r"gone\.parquet does not exist"):
        embed.run(context)
    for stage in (profiles.run_items, profiles.run_users):
        with pytest.raises(UserError, match=r"remove embeddings\.item_vectors"):
            stage(context)


def test_without_own_vectors_the_fingerprint_has_not_changed(tmp_path):
    context, seen = context_with(tmp_path), []
    context.run.run_stage = lambda stage, config, inputs, body: seen.append((config, inputs))
    embed.run(context)
    config = {"model": "all-minilm-l6-v2", "batch_size": 64}
    assert seen == [(config, ["data", "item_profiles", "user_profiles"])]


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "v.parquet", ITEM_IDS, MATRIX.tolist())
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"v\.parquet is not a readable parquet file"):
        read_items(path)
    pq.write_table(pa.table({"item_id": ITEM_IDS, "vector": MATRIX.tolist()}), path)
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360  # pages broken, footer whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"v\.parquet"):
        read_items(path)
