"""The optimizers: Adam, and Muon for a convolutional network, with Adam for what is no kernel."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from train.config import OptimizerConfig

RMS = 0.2
"""Of a kernel's step, as a multiple of the learning rate: about that of Adam's."""
MOMENTUM = 0.95
FEWEST = 8
"""Rows and columns of a matrix that is worth making orthogonal; the layers at the network's ends have fewer."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, *, fused: bool, graphed_on: torch.device | None
) -> torch.optim.Optimizer:
    """The configuration's optimizer. fused: as of torch.optim.Adam. graphed_on: the GPU whose graph is to read the
    learning rate at every step."""
    lr = config.lr if graphed_on is None else torch.tensor(config.lr, device=graphed_on)
    betas, graphed = (config.beta1, config.beta2), graphed_on is not None
    if config.kind == "muon":
        return Muon(parameters, lr, betas, config.eps, fused=fused, capturable=graphed)
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(parameters, lr, betas, config.eps, config.weight_decay, fused=fused, capturable=graphed)


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """Matrices (rows, columns) with their singular vectors, and all singular values brought to between 0.68 and 1.2
    that were at least 0.002 of the matrix's norm; smaller ones come as far as they get.

    The Newton-Schulz iteration of Jordan et al. (Muon, 2024), x <- (a + b (x x') + c (x x')^2) x, five times. As every
    x is a polynomial of the first x x' times the first x, it is that small square matrix that is iterated here, those
    of one size together; the matrices themselves, nine times as wide, are multiplied twice. That takes all of fp32:
    where rounding makes an eigenvalue negative, each iteration makes it up to twelve times as large.
    """
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in matrices]
    # squares of less vanish in fp32: the step of a momentum that fades out fades too
    scaled = [m / m.norm().clamp(min=1e-15) for m in wide]
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(scaled):
        by_size[len(matrix)].append(index)
    result = list(matrices)
    a, b, c = _QUINTIC
    for size, indices in by_size.items():
        gram = torch.stack([scaled[i] @ scaled[i].T for i in indices])
        times_a = a * torch.eye(size, dtype=gram.dtype, device=gram.device)
        product = None
        for last in (*[False] * (_STEPS - 1), True):
            factor = times_a + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            product = factor if product is None else factor @ product
            if not last:
                gram = factor @ gram @ factor
        assert product is not None
        for i, left in zip(indices, product, strict=True):
            found = left @ scaled[i]
            result[i] = found if wide[i] is matrices[i] else found.T
    return result


class Muon(torch.optim.Optimizer):
    """Kernels step by their momentum made orthogonal, all else by Adam, whose betas and eps are for that alone.

    A kernel (O, I, k, k) is a matrix of O rows. Its step has about the RMS `RMS` times the learning rate (as in Liu et
    al., Muon is scalable for LLM training, 2025, section 2.2) whatever the gradient's size, less where that has a low
    rank; so one rate does for both kinds. torch.optim.Muon takes matrices alone, one at a time and in bf16.

    lr: a number, or a tensor where a CUDA graph is to read it at every step. fused, capturable: as of torch.optim.Adam.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        *,
        fused: bool,
        capturable: bool,
    ) -> None:
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            kinds[parameter.ndim == 4 and min(_matrix(parameter).shape) >= FEWEST].append(parameter)
        groups = [{"params": found, "kernels": kernels} for kernels, found in kinds.items() if found]
        defaults = {"lr": lr, "betas": betas, "eps": eps, "fused": fused, "capturable": capturable}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # gradients are taken as they are
        """One step, of the parameters that have gradients."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["kernels"]:
                self._orthogonal_step(parameters, group["lr"])
            elif parameters:
                self._adam_step(parameters, group)

    def _orthogonal_step(self, kernels: list[Tensor], lr: float | Tensor) -> None:
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        with _all_of_fp32():
            steps = orthogonal([_matrix(g) for g in ahead])
        for kernel, step in zip(kernels, steps, strict=True):
            # of an orthogonal matrix the RMS is 1 / sqrt of its longer side
            kernel.sub_(step.reshape(kernel.shape) * (lr * RMS * max(step.shape) ** 0.5))

    def _adam_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                on_device = group["fused"] or group["capturable"]
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device if on_device else "cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adam(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=None if group["fused"] else True,
            fused=group["fused"],
            capturable=group["capturable"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


@contextmanager
def _all_of_fp32() -> Iterator[None]:
    """Matrix products without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matrix(kernel: Tensor) -> Tensor:
    """(O, I, k, k) as (O, I*k*k)."""
    return kernel.reshape(len(kernel), -1)
