"""A training step as one CUDA graph: the GPU goes from kernel to kernel without waiting for Python."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 5
"""Steps that run as they are, before one is captured: in them cuDNN chooses its algorithms and the optimizer makes its
state, neither of which a graph can hold."""


class GraphedStep:
    """`step(noisy, clean) -> loss`, which works on CUDA tensors of one shape, captured once and then replayed.

    What `step` reads besides its arguments and changes from call to call must be in tensors that stay where they are
    (weights, the optimizer's state, its learning rate), and it must not wait for the GPU. Raises RuntimeError, as
    PyTorch does, where it does, and ValueError for tensors of another shape.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._step = step
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """One step; the loss is a tensor of its own."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside(noisy, clean)
        if self._graph is None:
            self._inputs = noisy.clone(), clean.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # nothing runs yet; the weights are as they were
                self._loss = self._step(*self._inputs)
            self._graph = graph
        for own, given in zip(self._inputs, (noisy, clean), strict=True):
            if own.shape != given.shape:  # copy_ would repeat a batch of one
                raise ValueError(f"expected a batch of {tuple(own.shape)}, found {tuple(given.shape)}")
            own.copy_(given)
        self._graph.replay()
        return self._loss.clone()

    def _beside(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """The step on a stream of its own: what autograd keeps of the default stream cannot be captured later."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True")  # the optimizer's, of steps without a graph
            loss = self._step(noisy, clean)
        current.wait_stream(self._stream)
        return loss
