"""Keys and rates."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raysys.cli import main
from raysys.errors import UserError
from raysys.serving import doors
from raysys.serving.doors import Allowances, Gate, TokenBucket, add_key, load_keys, who_is


def test_only_hashes_are_written(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made = [add_key(name, path)[0] for name in ("web", "batch")]
    text = path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert not any(key in text for key in made)
    keys, fresh = load_keys(path)
    assert fresh is None
    assert [who_is(key, keys) for key in made] == ["web", "batch"]
    assert who_is("another", keys) is None
    assert who_is("", keys) is None


def test_a_name_is_there_once(tmp_path: Path) -> None:
    add_key("web", tmp_path / "keys")
    with pytest.raises(UserError, match="has a key of 'web'"):
        add_key("web", tmp_path / "keys")
    with pytest.raises(UserError, match="one word"):
        add_key("a b", None)


def test_a_file_with_a_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("a-key-from-a-secret-store\n")
    keys, _ = load_keys(path)
    assert who_is("a-key-from-a-secret-store", keys) == "secret"


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "holds no key"), ("short", "entry 1"), ("web sha256:zz\n", "entry 1"), (None, "read")],
)
def test_bad_key_files(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=told):
        load_keys(path)


def test_without_a_file_it_is_the_environment_or_a_fresh_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYSYS_API_KEY", "mine")
    keys, fresh = load_keys(None)
    assert (who_is("mine", keys), fresh) == ("RAYSYS_API_KEY", None)
    monkeypatch.delenv("RAYSYS_API_KEY")
    keys, fresh = load_keys(None)
    assert fresh is not None
    assert len(fresh) >= 32
    assert who_is(fresh, keys) is not None


def test_the_key_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "web", "--out", str(tmp_path / "keys")]) == 0
    key = capsys.readouterr().out.split("once): ")[1].split()[0]
    assert who_is(key, load_keys(tmp_path / "keys")[0]) == "web"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(doors.time, "monotonic", lambda: now[0])
    return now


def test_a_bucket_fills_at_its_rate(clock: list[float]) -> None:
    bucket = TokenBucket(rate=2, burst=5)
    assert [bucket.take(3), bucket.take(3), bucket.take(1)] == [3, 2, 0]
    clock[0] += 1.0
    assert [bucket.take(9), bucket.take(1)] == [2, 0]
    clock[0] += 1000
    assert bucket.take(9) == 5


def test_several_replicas_share_one_rate(clock: list[float]) -> None:
    shared = Allowances(rate=50, burst=100)

    async def lease(name: str, wanted: int) -> int:
        return shared.lease(name, wanted)

    gates = [Gate(lease, 50, 100) for _ in range(3)]

    async def ask(times: int) -> int:
        return sum([await gate.enter("web") for _ in range(times) for gate in gates])

    assert asyncio.run(ask(100)) == 100
    for _ in range(20):
        clock[0] += 0.1
        assert asyncio.run(ask(50)) <= 5
    # Another key has a bucket of its own.
    assert asyncio.run(gates[0].enter("batch"))
