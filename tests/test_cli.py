from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path

import pytest

from raysys.cli import main
from raysys.cli_stages import STAGE_COMMANDS, TEXT_COMMANDS
from raysys.cli_sweeps import around_a_run
from raysys.comparison.rows import rows_of
from raysys.comparison.settings import CompareSettings
from raysys.pipeline import ELMREC, GRAPH_LM, STAGES, YES_NO
from raysys.settings import load_settings, override_values, read_values
from raysys.stages.context import RunSettings
from raysys.stages.yes_no_lists import LISTS
from raysys.starters import copy_starter

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
#: Rows that a comparison must have.
COMPARED = {
    "compare": {"als", "ngcf", "lightgcn_con_shuffled"},
    "compare_language": {"elmrec", "graph_lm", "pairwise", "yes_no"},
}


@pytest.fixture
def files(tmp_path):
    rows = [f"u{u},i{i},{1 + (u + i) % 5},{u * 10 + i}" for u in range(4) for i in range(5)]
    (tmp_path / "inter.csv").write_text("user_id,item_id,rating,timestamp\n" + "\n".join(rows))
    items = [f'i{i},"Title, {i}",Drama' for i in range(6)]
    (tmp_path / "items.csv").write_text("item_id,title,genres\n" + "\n".join(items))
    return tmp_path


def import_words(files, *more):
    return [
        "data", "import", "--interactions", str(files / "inter.csv"),
        "--items", str(files / "items.csv"), "--out", str(files / "out"), *more,
    ]  # fmt: skip


def test_import_prints_one_json_object_and_writes_the_manifest(files, capsys):
    assert main(import_words(files, "--json")) == 0
    value = json.loads(capsys.readouterr().out)
    manifest = json.loads((files / "out" / "manifest.json").read_text())
    assert value["counts"] == manifest["counts"]
    assert {"users", "items", "interactions", "duplicates"} <= manifest["counts"].keys()
    assert manifest["counts"]["items"] == 5
    assert manifest["dropped"]["items_without_interactions"] == 1


def test_a_changed_file_is_imported_again(files, capsys):
    main(import_words(files))
    with (files / "inter.csv").open("a") as file:
        file.write("\nu0,i5,5,99\n")
    assert main(import_words(files, "--json")) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not value["skipped"]
    assert value["counts"]["interactions"] == 21


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--map", "user=uid"], "did you mean 'user_id'?"),
        (["--map", "user_id"], "must look like ours=theirs"),
        (["--map", "user_id=uid"], "uid"),
        (["--split", "sideways"], "split.method"),
        (["--k-core", "-1"], "k_core"),
        (["--k-core", "50"], "no interaction is left"),
    ],
)
def test_mistakes_exit_with_2_and_leave_nothing(files, capsys, more, word):
    assert main(import_words(files, *more)) == 2
    captured = capsys.readouterr()
    assert word in captured.err
    assert captured.out == ""
    assert sorted(path.name for path in files.iterdir()) == ["inter.csv", "items.csv"]


def test_an_output_below_a_file_is_a_mistake(files, capsys):
    words = import_words(files)
    words[words.index("--out") + 1] = str(files / "inter.csv" / "x")
    assert main(words) == 2
    assert "inter.csv" in capsys.readouterr().err


def test_serve_refuses_a_port_that_is_taken_and_a_folder_that_is_not_there(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "nope")]) == 2
    assert "nope is no folder" in capsys.readouterr().err


def test_a_wrong_config_key_exits_with_2_and_starts_nothing(tmp_path, capsys):
    config = tmp_path / "c.toml"
    out = (tmp_path / "run").as_posix()
    config.write_text(f'out = "{out}"\n[data]\nsource = "ml-100k"\n[models.a]\nbackbon = "x"\n')
    assert main(["run", str(config)]) == 2
    assert "did you mean 'backbone'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stage_command_names_what_must_run_first(tmp_path, capsys):
    quick = CONFIGS[0].parent / "quickstart.toml"
    assert main(["evaluate", str(quick), f"out={tmp_path / 'run'}"]) == 2
    assert "raysys run CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    if path.stem.startswith("compare"):
        compared = load_settings(CompareSettings, path)
        values = read_values(ROOT / compared.run)
        override_values(values, compared.overrides)
        rows = {row.name for row in rows_of(compared, values)}
        assert COMPARED[path.stem] <= rows
        return
    settings = load_settings(RunSettings, path)
    if path.stem.startswith("elmrec"):
        assert not settings.elmrec.leaks
        return
    if path.stem.startswith("graph_lm"):
        assert settings.graph_lm.relations.kind == "linear"
        return
    if not path.stem.startswith("yes_no"):
        assert settings.models
        return
    asked, told = settings.yes_no, settings.summaries
    assert told.leave_out_latest == asked.train_positives
    assert (told.users, told.seed, told.domain) == (asked.users, asked.seed, asked.domain)


def test_a_run_without_models_is_refused_at_once(capsys):
    assert main(["run", str(ROOT / "configs" / "yes_no_cpu.toml")]) == 2
    assert "no [models.NAME]" in capsys.readouterr().err


def test_commands_and_jobs_cover_the_stages():
    commands = (*TEXT_COMMANDS.values(), *STAGE_COMMANDS.values())
    covered = [stage for stages, _ in commands for stage in stages]
    named = {"data", "train", "refit", "evaluate", *covered, *YES_NO, *ELMREC, *GRAPH_LM}
    # A row of a comparison.
    assert named | {LISTS} == set(STAGES)
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    by_name = {
        "run",
        "tune",
        "compare",
        "evaluate",
        "train",
        "train_elmrec",
        "train_graph_lm",
        "finetune_yes_no",
    }
    assert jobs == {*by_name, *STAGE_COMMANDS, *TEXT_COMMANDS}


def test_readme_commands_exist():
    text = (ROOT / "README.md").read_text()
    targets = (ROOT / "Makefile").read_text()
    used = [line for line in text.splitlines() if line.startswith("make ")]
    assert used
    for line in used:
        assert f"\n{line.split()[1]}:" in targets


def test_version_matches_the_package(capsys):
    assert main(["version", "--json"]) == 0
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    assert dynamic == ["version"]
    assert list(json.loads(capsys.readouterr().out)) == ["version"]


def test_a_dry_run_says_what_it_would_cost_and_asks_nothing(files, tmp_path, capsys):
    out = tmp_path / "run"
    words = [
        *("profile", str(ROOT / "configs" / "own_data.toml"), f"out={out}", "data.k_core=0"),
        *(f"data.interactions={files / 'inter.csv'}", f"data.items={files / 'items.csv'}"),
        f"profiles.cache={tmp_path / 'replies.sqlite'}",
        *("profiles.engine.kind=http", "profiles.engine.cpu_quantization=none"),
        *("--dry-run", "--price-in", "1", "--price-out", "2", "--tokens-per-second", "10"),
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    row = found["item_profiles"]
    assert (row["rows"], row["calls"], row["cached_calls"]) == (5, 5, 0)
    written = row["generated_tokens_at_most"]
    assert row["cost"] == round((row["prompt_tokens"] + 2 * written) / 1e6, 4)
    assert row["minutes"] == round(written / 600, 1)
    assert found["user_profiles"]["rows"] == 4
    assert not (out / "item_profiles").exists()
    prices = [words.index(name) for name in ("--price-in", "--price-out")]
    unpriced = [word for at, word in enumerate(words) if at - 1 not in prices and at not in prices]
    assert main(unpriced) == 0
    assert json.loads(capsys.readouterr().out)["item_profiles"]["cost"] is None


@pytest.mark.parametrize(
    ("name", "command"),
    [("own_data", "run"), ("compare.toml", "compare"), ("graph_lm_gpu", "train graph-lm")],
)
def test_a_copied_config_says_the_command_it_is_for(tmp_path, capsys, name, command):
    path = tmp_path / "mine.toml"
    assert main(["init", name, "--out", str(path)]) == 0
    assert f"next: raysys {command} {path}" in capsys.readouterr().out.splitlines()


def test_a_comparison_finds_the_config_of_its_run_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy_starter("compare", tmp_path / "compare.toml")
    assert main(["compare", "compare.toml"]) == 2
    assert "raysys init quickstart" in " ".join(capsys.readouterr().err.split())
    copy_starter("quickstart", tmp_path / "quickstart.toml")
    found = around_a_run(CompareSettings, tmp_path / "compare.toml", None, ["train.epochs=1"])
    assert found.run == tmp_path / "quickstart.toml"
    assert found.overrides[-1] == "train.epochs=1"
