"""The padding that every engine gets."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.padding import pad_to_multiple


def mirrored(index: int, length: int) -> int:
    """Where reflection without repeating the border, again and again, finds sample `index` of `length` samples."""
    if length == 1:
        return 0
    index %= 2 * length - 2
    return index if index < length else 2 * length - 2 - index


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(), (3,), (2, 3)]), st.sampled_from([8, 16]))
def test_padding_is_repeated_reflection(height: int, width: int, lead: tuple[int, ...], multiple: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (*lead, height, width), dtype=np.uint8)
    padded = pad_to_multiple(images, multiple)
    assert padded.dtype == images.dtype
    tall, wide = padded.shape[-2:]
    assert (tall % multiple, wide % multiple) == (0, 0)
    assert tall - height < multiple
    assert wide - width < multiple
    rows = [mirrored(y, height) for y in range(tall)]
    columns = [mirrored(x, width) for x in range(wide)]
    np.testing.assert_array_equal(padded, images[..., rows, :][..., columns])


def test_nothing_is_copied_where_nothing_is_missing() -> None:
    images = np.zeros((3, 16, 8))
    assert pad_to_multiple(images) is images
