"""The JPEG of train/jpeg.py against libjpeg's, through OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.images import read_picture
from export.parity import ASSETS
from train import jpeg
from train.jpeg import compress


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(1, 3, 128, 144) of a noisy photo, whose noise a JPEG changes most."""
    pixels = read_picture(ASSETS / "astronaut_noisy.png").pixels[64:192, 96:240]
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255


def libjpeg(image: Tensor, quality: int) -> Tensor:
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    data = cv2.imencode(".jpg", np.ascontiguousarray(pixels), flags)[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return torch.from_numpy(decoded[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255


def rms(a: Tensor, b: Tensor) -> float:
    return (a - b).mul(255).pow(2).mean().sqrt().item()


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 90, 100])
def test_it_is_libjpegs_but_for_the_rounding_of_coefficients(photo: Tensor, quality: int) -> None:
    reference = libjpeg(photo, quality)
    difference, loss = rms(compress(photo, [quality], [(0, 0)]), reference), rms(photo, reference)
    print(f"quality {quality}: JPEG changes levels by {loss:.2f} rms, this one differs by {difference:.2f}")
    assert difference < 0.1 * loss


def test_the_grid_of_blocks_begins_where_it_is_told(photo: Tensor) -> None:
    whole = libjpeg(photo, 50)
    for top, left in ((0, 0), (5, 0), (3, 13), (15, 15)):
        crop = photo[:, :, top : top + 96, left : left + 96].contiguous()
        of_whole = whole[:, :, top : top + 96, left : left + 96]
        inner = slice(16, 80)  # the blocks at the border saw other pixels
        right = rms(compress(crop, [50], [(top, left)])[..., inner, inner], of_whole[..., inner, inner])
        wrong = rms(compress(crop, [50], [((top + 4) % 16, left)])[..., inner, inner], of_whole[..., inner, inner])
        assert right < 0.5 * wrong


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.integers(0, 15), st.integers(0, 15))
def test_any_size_quality_and_origin_gives_8_bit_levels_of_that_size(
    height: int, width: int, quality: int, top: int, left: int
) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    out = compress(image, [quality], [(top, left)])
    assert out.shape == image.shape
    assert torch.equal(out, (out * 255).round() / 255)
    assert 0 <= out.min() <= out.max() <= 1
    flat = torch.full_like(image, 0.5)
    assert (compress(flat, [quality], [(top, left)]) - 0.5).abs().max() < 0.04  # DC step 255/8/255 / 2 at worst


def test_each_image_has_its_own_quality_and_origin(photo: Tensor) -> None:
    batch = torch.cat([photo, photo.flip(3), photo])
    options = ([30, 95, 75], [(0, 0), (7, 2), (15, 15)])
    together = compress(batch, *options)
    for i in range(3):
        assert torch.equal(compress(batch[i : i + 1], options[0][i : i + 1], options[1][i : i + 1])[0], together[i])
    assert rms(together[1], batch[1]) < rms(together[0], batch[0])


def test_the_tables_are_libjpegs_at_every_quality() -> None:
    """As its files hold them, in zigzag order."""
    row, column = np.indices((8, 8)).reshape(2, -1)
    along = np.where((row + column) % 2, row, column)
    zigzag = np.lexsort((along, row + column))
    gray = np.zeros((8, 8, 3), np.uint8)
    for quality in range(1, 101):
        data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        for number, base in enumerate((jpeg._LUMA, jpeg._CHROMA)):
            at = data.index(b"\xff\xdb\x00\x43" + bytes([number])) + 5
            table = jpeg._table(base, torch.tensor([quality]))[0].numpy()
            assert list(data[at : at + 64]) == table[zigzag].tolist(), quality


def test_the_transform_is_orthonormal() -> None:
    transform = jpeg._dct(torch.device("cpu"))
    assert torch.allclose(transform @ transform.T, torch.eye(64, dtype=torch.float64), atol=1e-12)
