"""Operands for the op's tests."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from plugins import op

Operands = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def operands() -> Callable[..., Operands]:
    """make(n, c, groups, o, h, w, reach=3, dtype=float64, seed=0): x, offset_mask, weight, bias.

    Offsets reach as many pixels beyond a tap, in every direction, and stay 0.2 away from whole pixels, where bilinear
    interpolation has no derivative.
    """

    def make(
        n: int,
        c: int,
        groups: int,
        o: int,
        h: int,
        w: int,
        *,
        reach: int = 3,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Operands:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        moves = (n, op.offset_channels(groups), h, w)
        whole = torch.randint(-reach, reach, moves, generator=g)
        offset = whole + 0.2 + 0.6 * torch.rand(moves, generator=g, dtype=torch.float64)
        logits = normal(n, op.mask_channels(groups), h, w)
        x, weight, bias = normal(n, c, h, w), normal(o, c, 3, 3) / 3, normal(o)
        return x.to(dtype), torch.cat((offset, logits), 1).to(dtype), weight.to(dtype), bias.to(dtype)

    return make
