from __future__ import annotations

import json
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pytest

from raysys.errors import UserError
from raysys.manifest import StageReport, read_manifest
from raysys.runs import RunDirectory, run_stage
from raysys.store import (
    fingerprint,
    map_arrays,
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_json,
    write_table,
)


def body_writing(text, calls):
    def body(output):
        calls.append(text)
        write_json(output / "result.json", {"text": text})
        return StageReport(counts={"in": 1, "ok": 1, "dead_letter": 0})

    return body


def test_a_finished_stage_is_skipped_and_a_changed_one_runs_again(tmp_path):
    calls: list[str] = []
    target = tmp_path / "stage"
    first, skipped = run_stage(target, "s", {"a": 1}, {}, body_writing("one", calls))
    assert not skipped
    assert read_json(target / "result.json") == {"text": "one"}
    again, skipped = run_stage(target, "s", {"a": 1}, {}, body_writing("two", calls))
    assert skipped
    assert again == first
    changed, skipped = run_stage(target, "s", {"a": 2}, {}, body_writing("three", calls))
    assert not skipped
    assert changed.fingerprint != first.fingerprint
    assert calls == ["one", "three"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]


def test_a_changed_file_from_outside_runs_a_stage_again(tmp_path):
    calls: list[str] = []
    run, path = RunDirectory(tmp_path / "run"), tmp_path / "mine.parquet"
    for content, text in (("x", "one"), ("x", "not run"), ("y", "two")):
        path.write_text(content)
        run.run_stage("s", {}, [], body_writing(text, calls), files={"mine": path})
    assert calls == ["one", "two"]


def test_changed_inputs_run_a_stage_again(tmp_path):
    calls: list[str] = []
    run_stage(tmp_path / "s", "s", {}, {"up": "h1"}, body_writing("one", calls))
    run_stage(tmp_path / "s", "s", {}, {"up": "h2"}, body_writing("two", calls))
    assert calls == ["one", "two"]


def test_an_interrupted_stage_keeps_its_files_and_goes_on(tmp_path):
    def broken(output):
        write_json(output / "part.json", 1)
        raise RuntimeError("killed")

    def resumed(output):
        assert read_json(output / "part.json") == 1
        return StageReport()

    with pytest.raises(RuntimeError, match="killed"):
        run_stage(tmp_path / "s", "s", {"a": 1}, {}, broken)
    assert not (tmp_path / "s").exists()
    manifest, _ = run_stage(tmp_path / "s", "s", {"a": 1}, {}, resumed)
    assert set(manifest.outputs) == {"part.json"}


def test_an_interrupted_attempt_at_other_work_is_not_reused(tmp_path):
    def broken(output):
        write_json(output / "part.json", 1)
        raise RuntimeError

    def fresh(output):
        assert not (output / "part.json").exists()
        return StageReport()

    with pytest.raises(RuntimeError):
        run_stage(tmp_path / "s", "s", {"a": 1}, {}, broken)
    run_stage(tmp_path / "s", "s", {"a": 2}, {}, fresh)


def test_a_refusal_leaves_no_trace(tmp_path):
    def refuse(output):
        raise UserError("no")

    with pytest.raises(UserError):
        run_stage(tmp_path / "s", "s", {}, {}, refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_users_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="choose another folder"):
        run_stage(tmp_path / "mine", "s", {}, {}, lambda output: StageReport())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_manifest_hashes_outputs_and_not_times(tmp_path):
    one, _ = run_stage(tmp_path / "a", "s", {}, {}, body_writing("same", []))
    two, _ = run_stage(tmp_path / "b", "s", {}, {}, body_writing("same", []))
    other, _ = run_stage(tmp_path / "c", "s", {}, {}, body_writing("other", []))
    assert one.output_hash() == two.output_hash() != other.output_hash()
    assert one.versions["raysys"]


def test_a_run_is_held_by_one_process_at_a_time(tmp_path):
    with (
        RunDirectory(tmp_path).lock(),
        pytest.raises(UserError, match="another raysys process"),
    ):
        RunDirectory(tmp_path).lock()


def test_a_missing_stage_names_the_command(tmp_path):
    with pytest.raises(UserError, match="run `raysys run CONFIG`"):
        RunDirectory(tmp_path).run_stage("b", {}, ["a"], lambda output: StageReport())


def test_fingerprints_ignore_key_order_and_refuse_nan():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))


def test_round_trips(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_arrays(tmp_path / "a.safetensors", arrays)
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.safetensors")["x"], arrays["x"])
    table = pa.table({"a": [1, None]})
    write_table(tmp_path / "t.parquet", table)
    assert read_table(tmp_path / "t.parquet").equals(table)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.safetensors", read_arrays),
        ("a.safetensors", map_arrays),
        ("t.parquet", read_table),
        ("j.json", read_json),
    ],
)
def test_missing_and_broken_files_are_named(tmp_path, name, read):
    path = tmp_path / name
    with pytest.raises(UserError, match="does not exist"):
        read(path)
    path.write_bytes(b"\x80\x04\x95 not what it says")
    with pytest.raises(UserError, match=name):
        read(path)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "j.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["j.json"]


def test_a_foreign_manifest_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"made": "elsewhere"})
    with pytest.raises(UserError, match="not a raysys manifest"):
        read_manifest(tmp_path)


ARRAYS = {
    "f": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "h": np.arange(5, dtype=np.float16),
    "b": np.array([True, False, True]),
    "u": np.arange(7, dtype=np.uint8),
    "i": np.arange(4, dtype=np.int32).reshape(2, 2),
    "l": np.array(-(2**40), dtype=np.int64),
    "none": np.zeros((0, 4), np.float32),
}


def test_mapped_arrays_equal_read_ones_and_the_file_is_never_written(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS)
    before = path.read_bytes()
    mapped, read = map_arrays(path), read_arrays(path)
    assert mapped.keys() == read.keys() == ARRAYS.keys()
    for name, array in read.items():
        assert mapped[name].dtype == array.dtype
        assert mapped[name].shape == array.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(mapped[name], array)
    mapped["f"][0, 0] = 9
    assert mapped["f"][0, 0] == 9
    del mapped
    assert path.read_bytes() == before
    write_arrays(path, {})
    assert map_arrays(path) == {}


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_metadata_of_other_writers_is_passed_over(tmp_path):
    path = tmp_path / "a.safetensors"
    write_raw(path, {"__metadata__": {"format": "np"}, "a": entry([1], 0, 4)}, b"\0" * 4)
    np.testing.assert_array_equal(map_arrays(path)["a"], [0])


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    path = tmp_path / "large.safetensors"
    size = 4 * ((psutil.virtual_memory().total + psutil.swap_memory().total) // 4 + 2**28)
    write_raw(path, {"a": entry([size // 4], 0, size)})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)  # a hole: takes no room
    assert map_arrays(path)["a"][-1] == 0


@pytest.mark.parametrize("kept", [0, 5, 8, 30, -4, -1])
def test_a_truncated_file_is_not_mapped(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.safetensors is not a"):
        map_arrays(path)
    with pytest.raises(UserError, match=r"a\.safetensors is not a"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"a": entry([3], 0, 8)}, "'a' of shape"),
        ({"a": entry([2], 8, 0)}, "'a' of shape"),
        ({"a": entry([2], 4, 12)}, "'a' of shape"),
        ({"a": entry([4], 0, 16)}, "'a' of shape"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, "'b' of shape"),
        ({"a": entry([1], 0, 4)}, "end at byte"),
        ({"a": entry([10**30, 0], 0, 0), "b": entry([2], 0, 8)}, "Maximum allowed dimension"),
        ({"a": entry([-2], 0, 8)}, "a.shape.0"),
        ({"a": entry([1], 0, 8, "F64")}, "type F64, not F32"),
        ({"a": {"dtype": "F32"}}, "a.shape"),
        ([1, 2], "valid dictionary"),
        (b"{not json", "line 1"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, word):
    path = tmp_path / "a.safetensors"
    write_raw(path, header, b"\0" * 8)
    with pytest.raises(UserError, match=word) as caught:
        map_arrays(path)
    assert str(path) in str(caught.value)


def test_a_stage_that_finished_in_another_run_is_taken_from_there(tmp_path):
    calls = []
    first, _ = RunDirectory(tmp_path / "a").run_stage("s", {"x": 1}, [], body_writing("one", calls))
    run = RunDirectory(tmp_path / "runs" / "b", reuse=[tmp_path / "a", tmp_path / "runs"])
    taken, skipped = run.run_stage("s", {"x": 1}, [], body_writing("two", calls))
    assert (skipped, calls, taken) == (True, ["one"], first)
    files = [path / "s" / "manifest.json" for path in (tmp_path / "a", run.root)]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    # Other work is done, and found by the next run through the folder of runs.
    run.run_stage("s", {"x": 2}, [], body_writing("three", calls))
    third = RunDirectory(tmp_path / "runs" / "c", reuse=[tmp_path / "a", tmp_path / "runs"])
    assert third.run_stage("s", {"x": 2}, [], body_writing("four", calls))[1]
    assert calls == ["one", "three"]
    # The run that it was taken from is as it was.
    assert RunDirectory(tmp_path / "a").require("s", "run") == first


def test_a_changed_stage_of_another_run_is_not_taken(tmp_path):
    run = RunDirectory(tmp_path / "a")
    manifest, _ = run.run_stage("s", {}, [], body_writing("one", []))
    name = next(iter(manifest.outputs))
    (run.path("s") / name).write_text("longer than before")
    other = RunDirectory(tmp_path / "b", reuse=[tmp_path / "a"])
    with pytest.raises(UserError, match="is not what its manifest says"):
        other.run_stage("s", {}, [], body_writing("two", []))
    assert not other.path("s").exists()


def test_of_several_that_lack_the_same_stage_one_does_it(tmp_path):
    calls = []
    (tmp_path / "runs").mkdir()
    started = threading.Barrier(3)

    def work(name):
        started.wait()
        run = RunDirectory(tmp_path / "runs" / name, reuse=[tmp_path / "runs"])
        run.root.mkdir()
        run.run_stage("s", {}, [], body_slowly)

    def body_slowly(output):
        calls.append(output)
        time.sleep(0.3)
        return StageReport()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all((tmp_path / "runs" / name / "s" / "manifest.json").is_file() for name in "abc")
