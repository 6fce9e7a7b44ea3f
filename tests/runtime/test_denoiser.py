"""Padding, tiles, types and rounding, against engines whose every sample is known."""

import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import InputError
from common.padding import pad_to_multiple
from runtime import Denoiser, tiles
from runtime.engines import Engine
from runtime.engines.base import Images, Io, Size, SizeRange, from_io, size_of
from runtime.tiles import OVERLAP, SIDES, TILE, choose_tile, shared, spans


class Stub(Engine):
    """Adds to every sample a multiple of the one `reach` pixels up and left; remembers the shapes it was given.

    It is equivariant to shifts of 8 pixels only, as SADNet is: each position modulo 8 has its own multiple.
    """

    name = "stub"

    def __init__(self, channels: int = 3, sizes: tuple[SizeRange, ...] = (SizeRange(),), reach: int = 0) -> None:
        self.channels, self.sizes, self.reach = channels, sizes, reach
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def _run(self, images: Images) -> Images:
        assert images.dtype == self.io
        assert images.flags.c_contiguous
        height, width = size_of(images)
        assert height % 8 == width % 8 == 0
        assert images.shape[-1 if self.io == "uint8" else 1] == self.channels
        assert any((height, width) in sizes for sizes in self.sizes)
        self.shapes.append(images.shape)
        if not self.reach:
            return images.copy()
        factors = np.random.default_rng(0).random((8, 8)).astype(np.float32)
        multiple = np.tile(factors, (height // 8, width // 8))
        far = np.zeros_like(images)
        far[..., self.reach :, self.reach :] = images[..., : -self.reach, : -self.reach]
        return images * np.float32(0.5) + far * multiple * np.float32(0.5)

    def close(self) -> None:
        self.closed = True


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return np.asarray(rng.random(shape).astype(dtype))
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


sides = st.integers(1, 200)
dtypes = st.sampled_from([np.uint8, np.uint16, np.float16, np.float32])


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from(["gray", "colour", "batch"]), dtypes, st.sampled_from([None, 0, 64, 72, 128]))
def test_an_engine_that_copies_returns_the_picture(
    height: int, width: int, kind: str, dtype: Any, tile: int | None
) -> None:
    image = noise({"gray": (height, width), "colour": (height, width, 3), "batch": (2, height, width, 3)}[kind], dtype)
    before = image.copy()
    for channels in (1, 3) if kind == "gray" else (3,):
        result = Denoiser(Stub(channels), tile=tile).denoise(image)
        assert (result.shape, result.dtype) == (image.shape, image.dtype)
        if np.dtype(dtype).kind == "f":
            np.testing.assert_allclose(result, image, atol=1e-6)
        else:
            np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(image, before)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 96, 128]), st.integers(1, 16), st.booleans())
def test_tiles_agree_with_the_whole(height: int, width: int, tile: int, reach: int, colour: bool) -> None:
    image = noise((height, width, 3) if colour else (height, width), np.float32)
    whole = Denoiser(Stub(reach=reach)).denoise(image)
    engine = Stub(reach=reach)
    np.testing.assert_array_equal(Denoiser(engine, tile=tile).denoise(image), whole)
    assert len(set(engine.shapes)) == 1  # one shape: no engine has to be prepared for another one


sides_of_tiles = st.sampled_from([None, *range(64, 705, 8)])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from(["gray", "colour", "batch"]),
    st.sampled_from(["u1", "u2", "f2", "f4", "f8"]),
    sides_of_tiles,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
def test_any_picture_in_any_tiles(
    height: int, width: int, kind: str, dtype: str, tile: int | None, strength: float, seed: int
) -> None:
    """Shape and type are kept, samples are finite and in range, and tiles give what the whole picture gives, with an
    engine that reaches as far as the tiles allow and is equivariant to shifts of 8 pixels only."""
    image = noise({"gray": (height, width), "colour": (height, width, 3), "batch": (2, height, width, 3)}[kind], dtype)
    if np.dtype(dtype).kind == "f":
        image = (image * 3 - 1).astype(dtype)  # noise leaves [0, 1]
    reach = shared(tile or TILE) // 2
    result = Denoiser(Stub(reach=reach), tile=tile).denoise(image, strength)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)
    assert np.isfinite(result).all()
    if np.dtype(dtype).kind == "f":
        assert result.min() >= 0
        assert result.max() <= 1
    whole = Denoiser(Stub(reach=reach), tile=704).denoise(image, strength)
    np.testing.assert_array_equal(result, whole)


def test_without_overlap_the_same_tiles_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise((200, 200, 3), np.float32)
    monkeypatch.setattr(tiles, "OVERLAP", 0)
    tiled = Denoiser(Stub(reach=16), tile=64).denoise(image)
    assert not np.array_equal(tiled, Denoiser(Stub(reach=16)).denoise(image))


@settings(max_examples=60, deadline=None)
@given(
    sides,
    sides,
    st.sampled_from([[((64, 64), (64, 64))], [((128, 72), (128, 72)), ((64, 64), (72, 96))], [((80, 64), (160, 96))]]),
    st.integers(1, 16),
    st.sampled_from([None, 64, 128]),
)
def test_engines_of_few_sizes(
    height: int, width: int, sizes: list[tuple[Size, Size]], reach: int, tile: int | None
) -> None:
    image = noise((2, height, width, 3), np.float32)
    expected = Denoiser(Stub(reach=reach)).denoise(image)
    engine = Stub(sizes=tuple(SizeRange(least, most) for least, most in sizes), reach=reach)
    np.testing.assert_array_equal(Denoiser(engine, tile=tile).denoise(image), expected)


def test_small_pictures_and_tiles_go_in_batches() -> None:
    """As many as have the pixels of one large tile: one at a time would leave a GPU idle."""
    engine = Stub()
    Denoiser(engine, tile=128).denoise(noise((9, 64, 64, 3)))
    assert engine.shapes == [(4, 3, 64, 64), (4, 3, 64, 64), (1, 3, 64, 64)]


def test_a_picture_of_as_many_pixels_as_a_tile_is_not_cut() -> None:
    assert choose_tile((TILE // 2, 2 * TILE), [SizeRange()], None) == (TILE // 2, 2 * TILE)


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        ((320, 480), None, (320, 480)),  # the plan of just this size
        ((321, 481), None, (328, 248)),  # two halves of the third, fewer pixels than one of 640x640
        ((10, 10), None, (64, 64)),  # the least that the third takes
        ((640, 700), None, (640, 352)),  # two of 352 columns, where the second plan would need two of 640
        ((321, 481), 128, (128, 128)),
    ],
)
def test_the_size_that_suits_best(
    size: Size, tile: int | None, expected: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "OVERLAP", 0)
    fixed = [SizeRange(side, side) for side in ((320, 480), (640, 640))]
    ranges = [*fixed, SizeRange((64, 64), (640, 352))]
    assert choose_tile(size, ranges, tile) == expected


@given(st.integers(1, 400), st.integers(8, 40), st.integers(0, 20))
def test_spans_cover_every_row_once(length: int, tile: int, overlap: int) -> None:
    length, tile = 8 * max(length, tile), 8 * tile
    overlap = min(8 * overlap, tile // 2 // 8 * 8)
    end = 0
    for start, first, last in spans(length, tile, overlap):
        assert start % 8 == 0
        assert 0 <= start <= length - tile
        assert first == end < last
        assert start == 0 or first - start >= overlap // 2
        assert start + tile == length or start + tile - last >= overlap // 2
        end = last
    assert end == length


def test_automatic_tiles_bound_what_the_network_is_given() -> None:
    engine = Stub()
    Denoiser(engine).denoise(np.zeros((320, 800, 3), np.uint8))
    assert engine.shapes == [(1, 3, 320, 800)]
    engine = Stub()
    Denoiser(engine).denoise(np.zeros((500, 1500), np.uint8))
    assert set(engine.shapes) == {(1, 3, 504, 448)}  # four tiles of 500x1500 that share 96, none larger than needed
    engine = Stub()
    Denoiser(engine).denoise(np.zeros((64, 100, 200, 3), np.uint8))
    assert sum(shape[0] for shape in engine.shapes) == 64
    assert max(np.prod(shape) // 3 for shape in engine.shapes) <= TILE**2


def test_the_engine_is_given_the_padding_that_everyone_uses() -> None:
    class Keeps(Stub):
        def _run(self, images: Images) -> Images:
            self.given = images
            return images

    engine, image = Keeps(), noise((5, 3, 3))
    Denoiser(engine).denoise(image)
    expected = pad_to_multiple(np.moveaxis(image, -1, 0)[None]).astype(np.float32) / 255
    np.testing.assert_allclose(engine.given, expected, rtol=1e-6)


class Bytes(Stub):
    """An engine of 8-bit images, which inverts them."""

    io: Io = "uint8"

    def _run(self, images: Images) -> Images:
        return 255 - super()._run(images)


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.sampled_from(["gray", "colour", "batch"]), st.sampled_from([None, 64]), st.booleans())
def test_engines_of_8_bit_images(height: int, width: int, kind: str, tile: int | None, floats: bool) -> None:
    shape = {"gray": (height, width), "colour": (height, width, 3), "batch": (2, height, width, 3)}[kind]
    image = noise(shape)
    given = image / np.float32(255) if floats else image
    for channels in (1, 3) if kind == "gray" else (3,):
        result = Denoiser(Bytes(channels), tile=tile).denoise(given)
        assert result.dtype == given.dtype
        np.testing.assert_allclose(result * (255 if floats else 1), 255.0 - image, atol=1e-3)


def test_floats_beyond_the_range_are_clipped_for_8_bit_engines() -> None:
    image = np.linspace(-0.5, 1.5, 8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    rounded = np.rint(image.clip(0, 1) * 255)
    np.testing.assert_allclose(Denoiser(Bytes()).denoise(image), 1 - rounded / 255, atol=1e-6)
    planes = image.transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(from_io(planes, np.dtype(np.uint8)), rounded[None].astype(np.uint8))


def test_8_bit_images_reach_their_engine_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float is made of them, which at video rates would cost more than the network."""
    monkeypatch.setattr(np, "divide", None)
    image = noise((70, 100, 3))
    np.testing.assert_array_equal(Denoiser(Bytes()).denoise(image), 255 - image)


def test_16_bit_pictures_are_not_made_8_bit_ones() -> None:
    with pytest.raises(InputError, match="expected an 8-bit picture"):
        Denoiser(Bytes()).denoise(np.zeros((8, 8, 3), np.uint16))


def test_blending_works_on_8_bit_engines_too() -> None:
    image = np.full((9, 9, 3), 100, np.uint8)
    assert (Denoiser(Bytes()).denoise(image, 0.5) == 128).all()  # of 100 and 155, rounded to even


def test_streams_overlap_in_the_denoiser() -> None:
    """Tiles reach the engine as one stream, so that an engine can upload one while it computes another."""

    class Looks(Stub):
        def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
            self.seen = list(batches)
            return map(self._run, self.seen)

    engine, image = Looks(), noise((200, 200, 3))
    np.testing.assert_array_equal(Denoiser(engine, tile=64).denoise(image), image)
    assert len(engine.seen) > 4


def test_a_stream_holds_no_image_that_is_done() -> None:
    given: list[weakref.ref[NDArray[Any]]] = []
    alive: list[list[bool]] = []

    class Looks(Stub):
        def _run(self, images: Images) -> Images:
            alive.append([image() is not None for image in given])
            return super()._run(images)

    def images() -> Iterator[NDArray[Any]]:
        for seed in range(3):
            image = noise((40, 50, 3), seed=seed)
            given.append(weakref.ref(image))
            yield image
            del image

    for result in Denoiser(Looks()).denoise_stream(images()):
        assert result.shape == (40, 50, 3)
    assert alive == [[True], [False, True], [False, False, True]]


def test_an_engine_given_open_stays_open() -> None:
    engine = Stub()
    with Denoiser(engine) as denoiser:
        denoiser.denoise(np.zeros((8, 8), np.uint8))
    assert not engine.closed


def test_threads_share_a_denoiser() -> None:
    images = [noise((50 + seed, 70, 3), seed=seed) for seed in range(8)]
    with Denoiser(Stub(reach=8), tile=64) as denoiser, ThreadPoolExecutor(4) as pool:
        expected = [denoiser.denoise(image) for image in images]
        for result, image in zip(pool.map(denoiser.denoise, images), expected, strict=True):
            np.testing.assert_array_equal(result, image)


def test_constants_are_multiples_of_8() -> None:
    assert OVERLAP % 16 == 0
    assert all(side % 8 == 0 and side >= 2 * OVERLAP for side in SIDES)
    assert TILE in SIDES
