"""What a person has who installs nothing of ours: PyTorch, with `torchvision.ops.deform_conv2d` itself, at its best.

On a GPU that is channels_last tensors, TF32 in fp32, cuDNN's fastest algorithms, CUDA graphs, pinned memory and bytes
on the bus. In half precision torchvision's op computes its sampling coordinates in half, which is fast and wrong: only
speed is compared here. Only callers that have torch import this.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import ModelError
from plugins.contenders import torchvision_layer
from runtime.engines.base import Io
from runtime.engines.torch import TorchEngine
from runtime.measure import Contender
from train.sadnet import ModulatedDeformConv, SADNet
from train.weights import load_weights


def peers(weights: Path, threads: int | None = None, compiled: bool | None = None) -> list[Contender]:
    """PyTorch eager in fp32 and, where `compiled`, with torch.compile, in fp16 on a GPU and in fp32 on a CPU.

    compiled: None means on a GPU; compiling takes minutes a size. Opening one sets PyTorch's own switches for speed,
    for the whole process. Raises ModelError where `weights` are none of ours.
    """
    if threads:
        torch.set_num_threads(threads)
    network = load_weights(weights)
    for module in network.modules():
        if isinstance(module, ModulatedDeformConv):
            module.operator = torchvision_layer  # type: ignore[assignment]  # without the options that nobody gives
    on_gpu = torch.cuda.is_available()

    def opened(engine: Callable[[SADNet, int], TorchEngine], dtype: torch.dtype) -> TorchEngine:
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True  # cuDNN's TF32 is on by itself
        try:
            placed = copy.deepcopy(network).to("cuda" if on_gpu else "cpu", dtype)
        except RuntimeError as error:  # the other engines have left no room
            raise ModelError(f"{weights}: cannot be taken to the GPU: {error}") from error
        made = engine(placed, network.config.channels)
        made.details = {"config": network.config.as_dict()}
        return made

    found = [Contender("PyTorch eager fp32", lambda: opened(TorchEngine, torch.float32))]
    if on_gpu if compiled is None else compiled:
        label, dtype = ("fp16", torch.float16) if on_gpu else ("fp32", torch.float32)
        found.append(Contender(f"PyTorch torch.compile {label}", lambda: opened(CompiledEngine, dtype)))
    return found


class CompiledEngine(TorchEngine):
    """Compiled in one piece for one shape of bytes: the network, and what converts them before and after it."""

    io: Io = "uint8"  # one kind alone, or another minutes-long compilation would be needed to time the other

    def __init__(self, network: SADNet, channels: int) -> None:
        super().__init__(network, channels, graphs=False)  # the compiler captures its own
        self._compiled: Any = torch.compile(super()._denoise, mode="max-autotune", fullgraph=True, dynamic=False)

    def _denoise(self, images: Tensor) -> Tensor:
        result: Tensor = self._compiled(images)
        return result

    def close(self) -> None:
        super().close()
        torch.compiler.reset()  # what was compiled keeps its graphs' memory otherwise
