from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import UserError
from raysys.store import (
    RunDirectory,
    StageReport,
    fingerprint,
    read_arrays,
    read_json,
    read_manifest,
    read_table,
    run_stage,
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
    [("a.safetensors", read_arrays), ("t.parquet", read_table), ("j.json", read_json)],
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
