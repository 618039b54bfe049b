from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysys.errors import UserError
from raysys.text.quantize import int8_model, quantize_rows


def model_folder(path, weights, config=None):
    path.mkdir()
    for name, tensors in weights.items():
        save_file(tensors, path / name)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    return str(path)


def test_rows_are_rounded_by_their_own_scale():
    # Row 0: scale 2/127, so 1 → 63.5 → 64 (half to even); row 1: scale 1/127; row 2: all zero.
    weight = torch.tensor([[2.0, -1.0], [0.5, -1.0], [0.0, 0.0]])
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8
    assert rounded.tolist() == [[127, -64], [64, -127], [0, 0]]
    assert scale[:2, 0].tolist() == pytest.approx([2 / 127, 1 / 127])
    assert torch.all((rounded * scale - weight).abs() <= scale / 2 + 1e-6)


def test_a_copy_is_made_once_and_keeps_what_is_not_linear(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path / "home"))
    embedding = torch.randn(5, 4).bfloat16()
    folder = model_folder(
        tmp_path / "model",
        {
            "a.safetensors": {"model.layers.0.q_proj.weight": torch.randn(4, 4).bfloat16()},
            "b.safetensors": {"model.embed_tokens.weight": embedding},
        },
    )
    copy = int8_model(folder)
    assert int8_model(folder) == copy
    assert sorted(load_file(f"{copy}/a.safetensors")) == [
        "model.layers.0.q_proj.weight",
        "model.layers.0.q_proj.weight_scale",
    ]
    assert torch.equal(load_file(f"{copy}/b.safetensors")["model.embed_tokens.weight"], embedding)
    with open(f"{copy}/model.safetensors.index.json") as file:
        assert json.load(file)["weight_map"]["model.layers.0.q_proj.weight_scale"] == (
            "a.safetensors"
        )
    with open(f"{copy}/config.json") as file:
        assert json.load(file)["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        ({}, None, "needs a local model folder"),
        ({"a.safetensors": {"wte": torch.zeros(2, 2)}}, None, "no layers that we know"),
        ({"a.safetensors": {}}, {"quantization_config": {}}, "quantised already"),
    ],
)
def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, weights, config, message
):
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path / "home"))
    folder = model_folder(tmp_path / "model", weights, config)
    with pytest.raises(UserError, match=message):
        int8_model(folder)
    assert not list((tmp_path / "home").rglob("*.json"))
