"""PyTorch: runs a network that its caller made. The only engine file that imports torch; nothing here imports it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.engines.base import Engine


class TorchEngine(Engine):
    """A module that takes and gives N,C,H,W float32 in [0, 1], on the device of its parameters, in evaluation mode."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network = network.eval()
        self.device = next(network.parameters()).device
        self.channels = channels
        self.size = None
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self.name = f"PyTorch {torch.__version__}, {place}"

    @torch.inference_mode()
    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        output: Tensor = self.network(torch.from_numpy(images).to(self.device))
        result: NDArray[np.float32] = output.float().cpu().numpy()
        return result
