"""A model's trained parameters and its optimiser's state as arrays, whole even where sharded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from raysys.errors import UserError

Arrays = dict[str, np.ndarray]


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that gradients reach, by name."""
    return {name: found for name, found in model.named_parameters() if found.requires_grad}


def parameters_of(model: torch.nn.Module) -> Arrays:
    """All trained parameters by name, as copies on the CPU; sharded ones ask all workers."""
    return {name: _array(parameter) for name, parameter in trained(model).items()}


@torch.no_grad()
def load_parameters(model: torch.nn.Module, arrays: Arrays, source: Path) -> None:
    """Set all trained parameters of `model`.

    Raises:
        UserError: names or shapes differ; `source` is named.
    """
    own = trained(model)
    for name in sorted(own.keys() ^ arrays.keys()):
        raise UserError(f"{source} does not fit this model: parameter '{name}' is not in both.")
    for name, parameter in own.items():
        if tuple(parameter.shape) != arrays[name].shape:
            raise UserError(
                f"{source} does not fit this model: '{name}' is {arrays[name].shape}, "
                f"expected {tuple(parameter.shape)}."
            )
        parameter.copy_(_tensor(arrays[name], parameter))


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    """The optimiser's state of each trained parameter, as `name/key`."""
    return {
        f"{name}/{key}": _array(value)
        for name, parameter in trained(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, arrays: Arrays
) -> None:
    """The inverse of `optimizer_state`."""
    for name, parameter in trained(model).items():
        # The step count is a scalar; safetensors gives it back as an array of one.
        optimizer.state[parameter] = {
            key: torch.from_numpy(value.reshape(()).copy()).to(parameter.device)
            if key == "step"
            else _tensor(value, parameter)
            for key, value in below(arrays, f"{name}/").items()
        }


def below(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _array(value: torch.Tensor) -> np.ndarray:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    array: np.ndarray = whole.detach().cpu().numpy().copy()
    return array


def _tensor(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A copy of `array` on the device of `like`, sharded as `like` is."""
    value = torch.from_numpy(array).to(like.device, like.dtype, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
