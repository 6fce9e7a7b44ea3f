"""PyTorch: runs a network that its caller made. Only callers that have torch import this."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ModelError
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
        try:
            output: Tensor = self.network(torch.from_numpy(images).to(self.device))
        except RuntimeError as error:  # out of memory, on either device
            height, width = images.shape[-2:]
            raise ModelError(f"cannot denoise {width}x{height} at once (tiles are smaller): {error}") from error
        result: NDArray[np.float32] = output.float().cpu().numpy()
        return result
