"""Banks of images of every size and kind, and what of them is held out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from common import images
from common.errors import InputError, OutputError, SadnetError
from train import examples
from train.data import SPLITS, Bank, absent, open_bank, split
from train.datasets import find
from train.examples import Example, photo

Pixels = NDArray[Any]


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> Pixels:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of all modes; OpenCV writes BGR."""
    root = tmp_path / "photos"
    (root / "deeper").mkdir(parents=True)
    for name, pixels in {
        "rgb.png": noise(20, 30, 3),
        "gray.png": noise(17, 19, seed=1),
        "rgba.png": noise(16, 16, 4, seed=2),
        "deep.png": noise(18, 16, 3, seed=3, dtype=np.uint16),
        "photo.JPG": np.full((24, 24, 3), 90, np.uint8),
        "deeper/small.png": noise(3, 5, 3, seed=4),
    }.items():
        assert cv2.imwrite(str(root / name), pixels)
    (root / "notes.txt").write_text("no image")
    return root


def photos_in(folder: Path) -> list[Example]:
    return [example for part in find(str(folder)) for example in part.examples]


def by_name(bank: Bank) -> dict[str, Pixels]:
    return {name: bank[i] for i, name in enumerate(bank.names)}


def test_images_of_every_mode_become_8_bit_rgb(folder: Path, tmp_path: Path) -> None:
    paths = photos_in(folder)
    reports: list[tuple[int, int]] = []
    bank = open_bank(paths, channels=3, cache=tmp_path / "bank", report=lambda *r: reports.append(r))
    found = by_name(bank)
    assert set(found) == {"rgb.png", "gray.png", "rgba.png", "deep.png", "photo.JPG", "small.png"}
    assert np.array_equal(found["rgb.png"], noise(20, 30, 3)[..., ::-1])
    assert np.array_equal(found["gray.png"], np.repeat(noise(17, 19, seed=1)[..., None], 3, 2))
    assert np.array_equal(found["rgba.png"], noise(16, 16, 4, seed=2)[..., 2::-1])
    deep = np.rint(noise(18, 16, 3, seed=3, dtype=np.uint16)[..., ::-1] / 257).astype(np.uint8)
    assert np.array_equal(found["deep.png"], deep)
    assert np.abs(found["photo.JPG"].astype(int) - 90).max() <= 2
    small = noise(3, 5, 3, seed=4)[..., ::-1]
    assert np.array_equal(found["small.png"], np.pad(small, ((0, 5), (0, 3), (0, 0)), mode="reflect"))
    assert [done for done, _ in reports] == [1, 2, 3, 4, 5, 6]


def test_gray_banks_hold_one_channel(folder: Path, tmp_path: Path) -> None:
    bank = open_bank([photo(folder / "gray.png"), photo(folder / "rgb.png")], channels=1, cache=tmp_path / "bank")
    assert bank.shapes == ((17, 19, 1), (20, 30, 1))
    assert np.array_equal(bank[0][..., 0], noise(17, 19, seed=1))
    luma = noise(20, 30, 3)[..., ::-1] @ [0.299, 0.587, 0.114]
    assert np.abs(bank[1][..., 0] - luma).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_of_a_single_row_are_extended_too(tmp_path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), noise(*size, 3))
    bank = open_bank([photo(tmp_path / "a.png")], channels=3, cache=tmp_path / "bank")
    assert bank.shapes[0] == (max(8, size[0]), max(8, size[1]), 3)


def test_a_bank_is_decoded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = photos_in(folder)
    first = open_bank(paths, channels=3, cache=tmp_path / "bank")
    with monkeypatch.context() as patch:
        patch.setattr(examples, "read_picture", lambda path: pytest.fail(f"{path} was decoded again"))
        again = open_bank(paths, channels=3, cache=tmp_path / "bank")
    assert again.names == first.names
    assert np.array_equal(again.pixels, first.pixels)


def test_a_bank_is_made_anew_where_anything_differs(folder: Path, tmp_path: Path) -> None:
    def opened(channels: int = 3, paths: list[Example] | None = None) -> int:
        open_bank(paths or photos_in(folder), channels=channels, cache=tmp_path / "bank")
        return len(list((tmp_path / "bank").glob("*.u8")))

    assert opened() == 1
    assert opened(channels=1) == 2
    assert opened(paths=photos_in(folder)[1:]) == 3
    cv2.imwrite(str(folder / "rgb.png"), noise(20, 30, 3, seed=9))
    assert opened() == 4
    bank = open_bank(photos_in(folder), channels=3, cache=tmp_path / "bank")
    assert np.array_equal(by_name(bank)["rgb.png"], noise(20, 30, 3, seed=9)[..., ::-1])


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("x")])
def test_an_interrupted_decoding_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    seen: list[Path] = []

    def fail_at_the_third(path: Path) -> Any:
        seen.append(path)
        if len(seen) == 3:
            raise fault
        return images.read_picture(path)

    monkeypatch.setattr(examples, "read_picture", fail_at_the_third)
    expected = OutputError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(expected):
        open_bank(photos_in(folder), channels=3, cache=tmp_path / "bank")
    assert os.listdir(tmp_path / "bank") == []  # noqa: PTH208 (hidden files count)


def test_a_bank_that_lost_pixels_says_so(folder: Path, tmp_path: Path) -> None:
    open_bank(photos_in(folder), channels=3, cache=tmp_path / "bank")
    for file in (tmp_path / "bank").glob("*.u8"):
        os.truncate(file, 100)
    with pytest.raises(SadnetError, match=r"delete .*bank to rebuild"):
        open_bank(photos_in(folder), channels=3, cache=tmp_path / "bank")


def test_a_text_file_named_png_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "fake.png").write_text("this is no image")
    with pytest.raises(InputError, match=r"fake\.png"):
        open_bank(photos_in(folder), channels=3, cache=tmp_path / "bank")


def pair(folder: Path, name: str, noisy: Pixels, clean: Pixels) -> Example:
    for kind, pixels in (("noisy", noisy), ("clean", clean)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / name), pixels)
    return Example((folder / "clean" / name,), folder / "noisy" / name, scene=name)


def test_a_bank_holds_a_pair_as_the_noisy_channels_before_the_clean_ones(folder: Path, tmp_path: Path) -> None:
    noisy, clean = noise(12, 20, 3, seed=7), noise(12, 20, 3, seed=8)
    mixed = [photo(folder / "rgb.png"), pair(tmp_path, "a.png", noisy, clean)]
    bank = open_bank(mixed, channels=3, cache=tmp_path / "bank")
    assert (bank.names, bank.shapes) == (("rgb.png", "a.png"), ((20, 30, 3), (12, 20, 6)))
    assert [bank.paired(i) for i in (0, 1)] == [False, True]
    both = np.concatenate([noisy[..., ::-1], clean[..., ::-1]], axis=2)
    assert np.array_equal(bank[1], both)
    gray = open_bank(mixed[1:], channels=1, cache=tmp_path / "bank")
    assert gray.shapes == ((12, 20, 2),)
    assert np.abs(gray[0][..., 1] - clean[..., ::-1] @ [0.299, 0.587, 0.114]).max() <= 1


def test_a_bank_of_pairs_is_made_anew_where_either_file_changes(tmp_path: Path) -> None:
    example = pair(tmp_path, "a.png", noise(16, 16, 3), noise(16, 16, 3, seed=1))
    for seed in (2, 3):
        cv2.imwrite(str(example.clean[0]), noise(16, 16, 3, seed=seed))
        bank = open_bank([example], channels=3, cache=tmp_path / "bank")
        assert np.array_equal(bank[0][..., 3:], noise(16, 16, 3, seed=seed)[..., ::-1])


def test_listed_names_are_held_out_wherever_they_lie(tmp_path: Path) -> None:
    holdout = tmp_path / "list.txt"
    holdout.write_text("b.png\nd.png\nabsent.png\n")
    training, validation = split([photo(Path(p)) for p in ("x/a.png", "x/b.png", "y/c.png", "y/d.png")], holdout)
    assert [e.name for e in training] == ["a.png", "c.png"]
    assert [e.name for e in validation] == ["b.png", "d.png"]
    warning = absent([*training, *validation], holdout)
    assert warning.endswith("1 of 3 names are not among the images, absent.png for one")
    assert absent(training, holdout) == ""  # as of a list that is for other images


def test_a_list_of_the_users_that_names_nothing_is_refused(tmp_path: Path) -> None:
    photos = [photo(Path(name)) for name in ("x/a.png", "x/b.png")]
    (tmp_path / "list.txt").write_text("x/b.png\n")
    with pytest.raises(InputError, match=r"expected file names or scenes .* such as a\.png, found x/b\.png"):
        split(photos, tmp_path / "list.txt")
    assert len(split(photos, SPLITS / "bsds500_validation.txt")[1]) == 1


@pytest.mark.parametrize(("count", "held"), [(2, 1), (20, 1), (21, 2), (400, 20), (1001, 20)])
def test_without_a_listed_name_one_in_twenty_is_held_out_and_twenty_at_most(
    tmp_path: Path, count: int, held: int
) -> None:
    (tmp_path / "list.txt").touch()
    photos = [photo(Path(f"{i:04}.png")) for i in range(count)]
    training, validation = split(photos, tmp_path / "list.txt")
    assert len(validation) == held
    assert sorted(training + validation, key=lambda e: e.name) == photos


def test_a_photo_more_leaves_the_held_out_ones_as_they_were(tmp_path: Path) -> None:
    """Or a resumed run would be validated on what it has trained on. Where the photos lie does not matter either."""
    (tmp_path / "list.txt").touch()

    def held_out(names: Iterable[str], folder: str = "x") -> set[str]:
        return {e.name for e in split([photo(Path(folder) / name) for name in names], tmp_path / "list.txt")[1]}

    names = [f"{i:04}.png" for i in range(400)]
    held = held_out(names)
    assert held_out(names, "elsewhere") == held
    assert held_out(reversed(names)) == held
    for new in ("a.png", "0200b.png", "z.png"):
        assert len(held_out([*names, new]) & held) >= 19
    assert len(held_out(names[1:]) & held) >= 19


def in_scene(scene: str, *numbers: int) -> list[Example]:
    return [Example((Path(f"{scene}_{i}_mean.JPG"),), Path(f"{scene}_{i}_real.JPG"), scene) for i in numbers]


def test_pairs_are_held_out_by_scene_and_photos_then_only_where_they_are_listed(tmp_path: Path) -> None:
    holdout = tmp_path / "list.txt"
    holdout.write_text("desk\nlisted.png\n")
    photos = [photo(Path(name)) for name in ("a.png", "listed.png")]
    desk, wall = in_scene("p/desk", 1, 2), in_scene("p/wall", 1)
    assert split([*photos, *desk, *wall], holdout) == ([photos[0], *wall], desk)
    assert absent([*photos, *desk, *wall], holdout) == ""
    holdout.write_text("\n")
    training, validation = split([*photos, *desk, *wall], holdout)
    assert (training, validation) == ([*photos, *wall], desk)  # a whole scene, not one of its pairs
    with pytest.raises(InputError, match="at least 2 scenes"):
        split([*photos, *desk], holdout)


def test_too_few_images_and_a_missing_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(InputError, match="names every image"):
        split([photo(Path("a.png"))], tmp_path / "list.txt")
    with pytest.raises(InputError, match="at least 2"):
        split([photo(Path("b.png"))], SPLITS / "bsds500_validation.txt")
    with pytest.raises(InputError, match=r"none\.txt"):
        split([photo(Path("a.png"))], tmp_path / "none.txt")
