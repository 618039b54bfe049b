"""Runs in object stores: a folder by address, and an S3 stand-in in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from toy_sweep import write_run

from raysys.cli import main
from raysys.errors import UserError
from raysys.manifest import StageReport, read_manifest
from raysys.mirror import Mirror
from raysys.pipeline import run_stages
from raysys.runs import RunDirectory, pull_run
from raysys.settings import load_settings, parse_settings
from raysys.stages.context import RunSettings
from raysys.store import read_json, write_json

Body = Callable[[Path], StageReport]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address and port of a server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        return (tmp_path / "store" / "mine").as_uri()
    address = request.getfixturevalue("s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stand-in")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stand-in")
    options = f"endpoint_override={address}&scheme=http&region=us-east-1"
    bucket = tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
    return f"s3://{bucket}/runs/mine?{options}&allow_bucket_creation=true"


def body(text: str, calls: list[str]) -> Body:
    def work(output: Path) -> StageReport:
        calls.append(text)
        write_json(output / "result.json", {"text": text})
        write_json(output / "deep" / "er.json", [text] * 1000)
        return StageReport(counts={"in": 1, "ok": 1, "dead_letter": 0})

    return work


def files_of(mirror: Mirror) -> list[str]:
    from pyarrow import fs

    selector = fs.FileSelector(mirror._root, recursive=True)
    found = mirror._store.get_file_info(selector)
    return sorted(one.path for one in found if one.type == fs.FileType.File)


def test_another_machine_goes_on_where_the_first_ended(uri: str, tmp_path: Path) -> None:
    calls: list[str] = []
    first = RunDirectory(tmp_path / "one", mirror=Mirror(uri))
    made, _ = first.run_stage("a", {"x": 1}, [], body("a", calls))
    first.run_stage("b", {}, ["a"], body("b", calls))
    second = RunDirectory(tmp_path / "two", mirror=Mirror(uri))
    taken, skipped = second.run_stage("a", {"x": 1}, [], body("not run", calls))
    assert skipped
    assert taken == made == read_manifest(second.path("a"))
    assert read_json(second.path("a") / "deep" / "er.json") == ["a"] * 1000
    # A stage that only b reads need not be run to be found.
    third = RunDirectory(tmp_path / "three", mirror=Mirror(uri))
    assert third.run_stage("c", {}, ["b"], body("c", calls))[1] is False
    assert calls == ["a", "b", "c"]
    assert Mirror(uri).stages() == ["a", "b", "c"]
    assert sorted(path.name for path in second.root.iterdir()) == ["a"]


def test_changed_work_takes_the_place_of_the_earlier(uri: str, tmp_path: Path) -> None:
    calls: list[str] = []
    mirror = Mirror(uri)
    run = RunDirectory(tmp_path / "one", mirror=mirror)
    for number in (1, 2):
        run.run_stage("a", {"x": number}, [], body(str(number), calls))
    assert len(files_of(mirror)) == 4, "two files, a manifest beside them and one above"
    other = RunDirectory(tmp_path / "two", mirror=Mirror(uri))
    _, skipped = other.run_stage("a", {"x": 1}, [], body("1 again", calls))
    assert not skipped
    assert calls == ["1", "2", "1 again"]


def test_what_was_made_without_it_is_kept_later(uri: str, tmp_path: Path) -> None:
    calls: list[str] = []
    RunDirectory(tmp_path / "run").run_stage("a", {}, [], body("a", calls))
    RunDirectory(tmp_path / "run", mirror=Mirror(uri)).run_stage("a", {}, [], body("b", calls))
    assert calls == ["a"]
    assert Mirror(uri).stages() == ["a"]


def test_a_copy_that_broke_off_is_not_there(uri: str, tmp_path: Path, monkeypatch) -> None:
    run = RunDirectory(tmp_path / "one", mirror=Mirror(uri))

    def broken(place: str, text: bytes) -> None:
        raise OSError("the connection is gone")

    monkeypatch.setattr(run.mirror, "_point", broken)
    with pytest.raises(UserError, match="the connection is gone"):
        run.run_stage("a", {}, [], body("a", []))
    assert Mirror(uri).stages() == []
    # The work is done and is not done again; only the copy is.
    calls: list[str] = []
    RunDirectory(run.root, mirror=Mirror(uri)).run_stage("a", {}, [], body("a", calls))
    assert (calls, Mirror(uri).stages()) == ([], ["a"])


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named_and_nothing_of_it_is_taken(
    uri: str, tmp_path: Path, damage: str
) -> None:
    mirror = Mirror(uri)
    RunDirectory(tmp_path / "one", mirror=mirror).run_stage("a", {}, [], body("a", []))
    path = next(one for one in files_of(mirror) if one.endswith("result.json"))
    mirror._store.delete_file(path)
    if damage == "changed":
        with mirror._store.open_output_stream(path) as file:
            file.write(b"{}")
    with pytest.raises(UserError, match=r"a/result.json is not what its manifest says"):
        pull_run(uri, tmp_path / "two")
    assert [one.name for one in (tmp_path / "two").iterdir()] == [".lock"]


def test_pull_copies_a_run(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "one", mirror=Mirror(uri))
    for name in "ab":
        run.run_stage(name, {}, [], body(name, []))
    assert main(["pull", uri, str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == ["a", "b"]
    assert read_json(tmp_path / "two" / "b" / "result.json") == {"text": "b"}


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("ftp://place/run", "must start with s3://, gs://, file://"),
        ("runs/mine", "must start with"),
        ("s3://key:secret@bucket/run", "no keys inside the address"),
        ("file:///", "names no place"),
        ("s3://bucket/run?colour=red", "colour"),
    ],
)
def test_an_address_that_cannot_be_one(uri: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        pull_run(uri, tmp_path / "run")


def test_an_empty_mirror_and_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="holds no finished stage"):
        pull_run((tmp_path / "none").as_uri(), tmp_path / "run")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stand-in")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stand-in")
    address = "s3://b/r?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(UserError, match=r"s3://b/r"):
        pull_run(address, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"out": "s3://bucket/run"}, "work is done in a folder; to keep it there too, set mirror"),
        ({"mirror": "bucket/run"}, "mirror"),
    ],
)
def test_a_config_says_which_is_which(change: dict[str, str], why: str) -> None:
    values = {"out": "runs/x", "data": {"source": "ml-100k"}} | change
    with pytest.raises(UserError, match=why):
        parse_settings(RunSettings, values, source="test")


def test_the_same_files_in_another_place_are_the_same_work(uri: str, tmp_path: Path) -> None:
    skipped = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = write_run(tmp_path / name)
        settings = load_settings(RunSettings, path, [f"mirror={uri}"])
        skipped.append(run_stages(settings, ["data"])["data"].skipped)
    assert skipped == [False, True]
