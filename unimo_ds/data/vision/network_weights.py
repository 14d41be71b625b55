"""Weights of detectors from files: tensors by name, never executable content."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unimo_ds.utils.errors import UserError

State = dict[str, torch.Tensor]

_NESTED = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "model.")


def read_state(path: Path) -> State:
    """The tensors of a safetensors file, or of a state dict saved by torch.

    Raises:
        UserError: missing, damaged, or a file whose reading would run code (including pickles of detectron2 and Caffe).
    """
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; name the file of the detector with --weights")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, and reading that would run what it says; "
            "write its weights as safetensors (safetensors.torch.save_file) with the program that made it"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read the weights in {path}: {error}") from None
    state = _tensors(content)
    if not state:
        raise UserError(f"{path} holds no tensors by name; give the state dict of the detector")
    return state


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(content: Any) -> State:
    """The tensors by name, without the wrappers that trainers add."""
    if not isinstance(content, Mapping):
        return {}
    for _ in _NESTED:  # a bound, since a pickle may hold itself
        content = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), content)
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def fill(network: torch.nn.Module, state: State, *, where: str) -> None:
    """Load the tensors into the network, in its dtypes.

    Raises:
        UserError: a name is missing or a shape differs, naming the first.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    if missing:
        raise UserError(f"{where} has no {missing[0]} ({len(missing)} of {len(own)} parameters are missing)")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(f"{where}: {name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
    network.load_state_dict({name: state[name].to(value.dtype) for name, value in own.items()})
