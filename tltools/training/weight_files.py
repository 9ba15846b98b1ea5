"""Read files of tensors that strangers may have made, never running code from them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tltools.errors import ArtifactError, first_line
from tltools.regular import check_regular

MAX_BYTES = 2**34
"""Largest file: four times that of the largest network that torchvision and timm publish."""


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        OSError: If it is missing, not a regular file, or too large.
        ArtifactError: If it is damaged.
    """
    check_regular(path, max_bytes=MAX_BYTES)
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # a damaged header has led to KeyError, ValueError and others
        raise ArtifactError(_described(error)) from error


def load_pickled(path: Path) -> Any:
    """Return the content of a file of `torch.save`, which may hold only tensors and plain values.

    Raises:
        OSError: If it is missing, not a regular file, or too large.
        ArtifactError: If it is damaged, or holds anything else.
    """
    check_regular(path, max_bytes=MAX_BYTES)
    try:
        with warnings.catch_warnings():  # of old formats and rare types
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file leads to
        raise ArtifactError(_described(error)) from error


def tensors_of(state: object) -> Mapping[str, Tensor]:
    """Return a state dict, after checking that its tensors are ordinary ones.

    Raises:
        ArtifactError: If it is not a dictionary of dense tensors by name that take no more memory
            than their values.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ArtifactError("it is not a state dict of tensors")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError("it is not a state dict of tensors")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ArtifactError(f"{name} is not an ordinary tensor")
        # A few bytes could be repeated any number of times.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ArtifactError(f"{name} has fewer values than its shape {tuple(tensor.shape)}")
    return state


def _described(error: Exception) -> str:
    return f"it is damaged, or holds more than tensors ({first_line(error)})"
