"""8-bit copies of language models, for processors without fast 16-bit arithmetic.

W8A8: each weight row and each activation row is scaled to its largest value and
rounded to int8. The products are exact integers, so a reply does not depend on
which other prompts are in the batch.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.assets import home
from raysys.errors import UserError
from raysys.observe import get_logger
from raysys.store import fingerprint, read_json, sha256_file, write_json

if TYPE_CHECKING:
    import torch

#: Linear layers of Llama, Mistral, Qwen, Gemma and SmolLM models.
_LINEAR = "_proj.weight"
_INT8_MAX = 127
_INDEX = "model.safetensors.index.json"
#: vLLM reads this as "int8 weights a row, int8 activations a token".
_QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
logger = get_logger(__name__)


def int8_model(folder: str) -> str:
    """The folder of the 8-bit copy of the model in `folder`, made once and kept.

    Copies lie under `RAYSYS_HOME/int8`, named by the hash of what they were made from.

    Raises:
        UserError: not a local folder with safetensors, already quantised, or an
            architecture whose linear layers we do not know.
    """
    source = Path(folder)
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"cpu_quantization = 'int8' needs a local model folder with safetensors; "
            f"'{folder}' is none. Set it to 'none', or give an asset or a folder."
        )
    files = {path.name: sha256_file(path) for path in (*weights, source / "config.json")}
    target = home() / "int8" / f"{source.name}-{fingerprint([files, _QUANTIZATION])[:16]}"
    if not target.is_dir():
        logger.info("making an 8-bit copy of %s, once", source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".int8-", dir=target.parent))
        try:
            _convert(source, weights, work)
            if not target.is_dir():  # another process may have been first
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return str(target)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to int8 by its own scale.

    Args:
        weight: (out, in), any floating type.

    Returns:
        (out, in) int8 and (out, 1) float32 scales; weight ≈ int8 · scale, off by
        at most half a scale.
    """
    import torch

    full = weight.float()
    scale = (full.abs().amax(dim=1, keepdim=True) / _INT8_MAX).clamp(min=1e-12)
    return (full / scale).round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8), scale


def _convert(source: Path, weights: list[Path], work: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = read_json(source / "config.json")
    if "quantization_config" in config:
        raise UserError(f"{source} is quantised already: set cpu_quantization = 'none'.")
    where: dict[str, str] = {}
    for path in weights:
        tensors = {}
        for name, tensor in load_file(path).items():
            if name.endswith(_LINEAR):
                quantized, scale = quantize_rows(tensor)
                tensors[name], tensors[f"{name}_scale"] = quantized, scale
            else:
                tensors[name] = tensor
        where |= dict.fromkeys(tensors, path.name)
        save_file(tensors, work / path.name, metadata={"format": "pt"})
    if not any(name.endswith(_LINEAR) for name in where):
        raise UserError(f"{source} has no layers that we know how to quantise to int8.")
    for path in source.iterdir():
        if path.is_file() and path.suffix in {".json", ".jinja", ".model", ".txt"}:
            shutil.copyfile(path, work / path.name)
    write_json(work / "config.json", {**config, "quantization_config": _QUANTIZATION})
    if len(weights) > 1:
        write_json(work / _INDEX, {"metadata": {}, "weight_map": where})
