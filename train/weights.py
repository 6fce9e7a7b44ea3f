"""Released weights: one safetensors file that says which SADNet it is, so that it loads without further options."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from common.contract import METADATA_KEY
from common.errors import ModelError
from common.files import write_whole
from train.sadnet import SADNet, SADNetConfig


def save_weights(network: SADNet, path: Path, *, dtype: torch.dtype = torch.float16, overwrite: bool = True) -> None:
    """Write `network`'s parameters as `dtype`, its configuration in the file's metadata."""
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps(network.config.as_dict())}
    # safetensors' own writing to a file hides a full disk behind a SafetensorError
    write_whole(path, safetensors.torch.save(tensors, metadata), overwrite=overwrite)


def load_weights(path: Path) -> SADNet:
    """The network of a file that `save_weights` wrote, in fp32, in evaluation mode.

    Raises ModelError where the file is missing, damaged or another network's.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: expected SADNet weights (safetensors), found: {error}") from error
    try:
        values: dict[str, Any] = json.loads(metadata[METADATA_KEY])
        network = SADNet(SADNetConfig(**values))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected weights written by train/run.py, found no SADNet configuration in its metadata"
        ) from error
    load_state(network, tensors, str(path))
    return network.eval()


def load_state(network: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict with the authors' names. Raises ModelError naming the first tensor that does not fit."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want, have = (d[name].shape if name in d else None for d in (expected, tensors))
        if want != have:
            show = [f"shape {tuple(s)}" if s is not None else "none" for s in (want, have)]
            raise ModelError(f"{source}: another network: expected {name} with {show[0]}, found {show[1]}")
    network.load_state_dict(tensors)


def gray_of(colour: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A colour network's state dict as a gray one's, which gives the mean of what that gives for (g, g, g)."""
    first, last = "res1.conv0.weight", ("out.weight", "out.bias")
    return {
        name: t.sum(1, keepdim=True) if name == first else t.mean(0, keepdim=True) if name in last else t
        for name, t in colour.items()
    }
