"""Reading pairs: pictures and MATLAB's files, and what is wrong with them in one line."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat  # type: ignore[import-untyped]  # scipy has no annotations

from common.directories import ORIENTATION, SHORT, pack
from common.errors import InputError
from common.images import Picture, encode_picture
from train.examples import Example, photo, read


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_photo_is_clean_and_its_own_scene(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), pixels(5, 6, 3)[..., ::-1])
    example = photo(tmp_path / "a.png")
    ((name, noisy, clean),) = read(example)
    assert (name, noisy, example.scene) == ("a.png", None, str(tmp_path / "a.png"))
    assert np.array_equal(clean, pixels(5, 6, 3))


def test_sidds_validation_blocks_are_pairs_of_rgb_images(tmp_path: Path) -> None:
    blocks = {kind: pixels(2, 3, 8, 8, 3, seed=i) for i, kind in enumerate(("Noisy", "Gt"))}
    for kind, values in blocks.items():
        savemat(tmp_path / f"Validation{kind}BlocksSrgb.mat", {f"Validation{kind}BlocksSrgb": values})
    example = Example((tmp_path / "ValidationGtBlocksSrgb.mat",), tmp_path / "ValidationNoisyBlocksSrgb.mat")
    found = list(read(example))
    assert [name for name, _, _ in found] == [f"ValidationNoisyBlocksSrgb {i}" for i in range(6)]
    for i, (_, noisy, clean) in enumerate(found):
        assert noisy is not None
        assert np.array_equal(noisy, blocks["Noisy"][i // 3, i % 3])
        assert np.array_equal(clean, blocks["Gt"][i // 3, i % 3])


def test_one_of_nams_files_holds_both_images_of_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "C_1.mat"
    both = {"img_noisy": pixels(7, 9, 3), "img_mean": pixels(7, 9, 3, seed=1)}
    savemat(path, both | {"img_cov": np.zeros((7, 9, 6))})
    ((name, noisy, clean),) = read(Example((path,), path))
    assert name == "C_1.mat"
    assert noisy is not None
    assert np.array_equal(noisy, both["img_noisy"])
    assert np.array_equal(clean, both["img_mean"])


def test_an_image_that_is_stored_turned_fits_its_clean_one(tmp_path: Path) -> None:
    upright = pixels(6, 9, 3)
    exif = b"II*\0\x08\0\0\0" + pack({ORIENTATION: (SHORT, (6).to_bytes(2, "little"))}, 8)
    turned = Picture(np.rot90(upright).copy(), metadata={"EXIF": exif})
    (tmp_path / "n.png").write_bytes(encode_picture(turned, ".png")[0])
    cv2.imwrite(str(tmp_path / "c.png"), upright[..., ::-1])
    ((_, noisy, clean),) = read(Example((tmp_path / "c.png",), tmp_path / "n.png"))
    assert noisy is not None
    assert np.array_equal(noisy, clean)


def test_the_mean_of_exposures_is_rounded(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(3))
    for path, level in zip(paths, (10, 11, 11), strict=True):
        cv2.imwrite(str(path), np.full((4, 4, 3), level, np.uint8))
    ((_, _, clean),) = read(Example(paths))
    assert np.array_equal(clean, np.full((4, 4, 3), 11))


def test_images_of_two_sizes_are_no_pair(tmp_path: Path) -> None:
    for name, size in (("n.png", (6, 8)), ("c.png", (6, 7)), ("d.png", (6, 8))):
        cv2.imwrite(str(tmp_path / name), pixels(*size, 3))
    noisy, clean, other = (tmp_path / name for name in ("n.png", "c.png", "d.png"))
    with pytest.raises(InputError, match=r"n\.png: expected the size of its clean image c\.png \(.*7x6\), found .*8x6"):
        list(read(Example((clean,), noisy)))
    with pytest.raises(InputError, match=r"c\.png: expected the size of d\.png"):
        list(read(Example((clean, other), noisy)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected a .mat file of version 5"),
        (b"", "expected a .mat file of version 5"),
        (b"MATLAB 7.3 MAT-file" + bytes(200), "expected a .mat file of version 5"),
        ({"other": np.zeros(3)}, "named ValidationNoisyBlocksSrgb or img_noisy, found none"),
        ({"img_noisy": np.zeros((4, 4, 3))}, r"found shape \(4, 4, 3\) of float64"),
        ({"img_noisy": pixels(4, 4)}, r"found shape \(4, 4\) of uint8"),
    ],
)
def test_a_mat_file_of_another_kind_is_one_line(tmp_path: Path, content: Any, expected: str) -> None:
    path = tmp_path / "noisy.mat"
    if isinstance(content, dict):
        savemat(path, content)
    elif content is not None:
        path.write_bytes(content)
    cv2.imwrite(str(tmp_path / "clean.png"), pixels(4, 4, 3))
    with pytest.raises(InputError, match=expected) as caught:
        list(read(Example((tmp_path / "clean.png",), path)))
    assert "\n" not in str(caught.value)
