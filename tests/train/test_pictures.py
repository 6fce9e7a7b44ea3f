"""Comparison strips and training curves: what is where, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from common import cli
from common.images import read_picture
from common.metrics import psnr
from runtime.denoiser import Denoiser
from train.curves import read_curves, smooth
from train.noise import protocol_noise
from train.pictures import MODEL, app
from train.strip import COLOURS, FRAME, GAP, MARGIN, Crop, Panel, compose

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT, SIDE, ZOOM = 64, 48, 16, 2
CROPS = [Crop(4, 8, SIDE), Crop(40, 30, SIDE)]


def pictures(*options: object) -> int:
    """The exit code of `python train/pictures.py`, run in this process."""
    with pytest.raises(SystemExit) as done:
        cli.run(app, several=("--crop", "--run"), argv=[str(option) for option in options])
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    small = np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    return tmp_path / "photo.png"


def squares(strip: Pixels, columns: int) -> list[list[Pixels]]:
    """The magnified squares without their frames, by row and column, found from the right end."""
    side = SIDE * ZOOM + 2 * FRAME
    lefts = [strip.shape[1] - MARGIN - (columns - i) * side - (columns - 1 - i) * GAP for i in range(columns)]
    tops = [MARGIN + row * (side + GAP) for row in range(len(CROPS))]
    return [[strip[y + FRAME : y + side - FRAME, x + FRAME : x + side - FRAME] for x in lefts] for y in tops]


def magnified(picture: Pixels, crop: Crop) -> Pixels:
    places = np.arange(SIDE * ZOOM) // ZOOM
    return picture[crop.y + places][:, crop.x + places]


def as_bytes(picture: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels


def options_of(photo: Path, output: Path, *more: object) -> list[object]:
    crops = [f"{crop.x},{crop.y},{SIDE}" for crop in CROPS]
    common = ("--sigma", 50, "--index", 4, "--zoom", ZOOM, "--threads", 1)
    return ["strip", "--clean", photo, *common, "--crop", *crops, "--output", output, *more]


def test_strip_shows_noisy_peer_ours_and_clean(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []

    def bm3d_rgb(noisy: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        told.append(sigma)
        return 1 - noisy

    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace(bm3d_rgb=bm3d_rgb))
    assert pictures(*options_of(photo, tmp_path / "strip.png")) == 0
    assert told == [50 / 255]

    clean = read_picture(photo).pixels
    scaled = clean.astype(np.float32) / np.float32(255)
    noisy = protocol_noise(scaled, 50, 4, clip8=True)
    with Denoiser(MODEL, threads=1) as denoiser:
        ours = denoiser.denoise(noisy)
    expected = [noisy, 1 - noisy, ours, scaled]
    strip = read_picture(tmp_path / "strip.png").pixels
    for row, crop in zip(squares(strip, 4), CROPS, strict=True):
        for square, picture in zip(row, expected, strict=True):
            np.testing.assert_array_equal(square, magnified(as_bytes(picture), crop))
    out = capsys.readouterr().out
    for name, picture in (("noisy, sigma 50", noisy), ("CBM3D", 1 - noisy), ("this project", ours)):
        assert f"{name}: {psnr(picture, scaled):.2f} dB" in out


def test_boxes_and_frames_have_the_crops_colours() -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    strip = compose(Panel(gray, "whole"), [Panel(gray, "one"), Panel(gray, "two")], CROPS, ZOOM)
    side = SIDE * ZOOM + 2 * FRAME
    height = 2 * side + GAP
    assert strip.shape[1] == 2 * MARGIN + round(WIDTH * height / HEIGHT) + 2 * (side + GAP)
    overview = strip[MARGIN : MARGIN + height, MARGIN : strip.shape[1] - MARGIN - 2 * (side + GAP)]
    for row, (crop, colour) in enumerate(zip(CROPS, COLOURS, strict=False)):
        there = np.argwhere((overview == colour).all(axis=2))
        scale = height / HEIGHT
        assert np.abs(there.min(axis=0) - [crop.y * scale, crop.x * scale]).max() <= 3
        assert np.abs(there.max(axis=0) - [(crop.y + SIDE) * scale, (crop.x + SIDE) * scale]).max() <= 3
        frame = strip[MARGIN + row * (side + GAP), -MARGIN - side : -MARGIN]
        assert (frame == colour).all()
    assert (strip[: MARGIN - 3] == 255).all()


def test_the_narrowest_photo_has_an_overview() -> None:
    picture = np.full((4000, 4, 3), 77, np.uint8)
    strip = compose(Panel(picture, "whole"), [Panel(picture, "a")], [Crop(0, 9, 4)], 1)
    side = 4 + 2 * FRAME
    assert strip.shape[1] == MARGIN + 1 + GAP + side + MARGIN


def test_captions_are_under_their_columns() -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)

    def below(*titles: str) -> Pixels:
        strip = compose(Panel(gray, ""), [Panel(gray, title) for title in titles], CROPS, ZOOM)
        return strip[MARGIN + 2 * (SIDE * ZOOM + 2 * FRAME) + GAP :]

    second = np.argwhere(below("", "ab").min(axis=2) < 128)[:, 1]
    width, side = below("", "").shape[1], SIDE * ZOOM + 2 * FRAME
    assert (below("", "") == 255).all()
    assert abs(second.mean() - (width - MARGIN - side / 2)) <= 4
    assert below(r"$\no$", "").min() < 128  # a file's name, which is no formula


def test_real_noise_is_taken_as_it_is(photo: Path, tmp_path: Path) -> None:
    noisy = 255 - read_picture(photo).pixels
    cv2.imwrite(str(tmp_path / "noisy.png"), noisy[..., ::-1])
    more = ("--noisy", tmp_path / "noisy.png", "--peer", "nlm")
    assert pictures(*options_of(photo, tmp_path / "strip.png", *more)) == 0
    strip = read_picture(tmp_path / "strip.png").pixels
    np.testing.assert_array_equal(squares(strip, 4)[0][0], magnified(noisy, CROPS[0]))


def test_non_local_means_takes_noise_away(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures(*options_of(photo, tmp_path / "strip.jpg", "--peer", "nlm")) == 0
    scores = {line.partition(": ")[0]: line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()}
    before, after = (float(scores[name].split()[0]) for name in ("noisy, sigma 50", "non-local means"))
    assert after > before + 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--crop", "50,0,16"], "expected X,Y,SIDE within 64x48 pixels, found '50,0,16'"),
        (["--crop", "1,1"], "found '1,1'"),
        (["--crop", "0,0,8"], "expected squares of one side"),
        (["--crop", "0,0,16", "1,0,16", "2,0,16"], "expected one to 4 squares, found 5"),
        (["--sigma", "0"], "--sigma"),
        (["--zoom", "0"], "--zoom"),
        (["--zoom", "300"], "expected 1 to 256 for squares of 16 pixels, found 300"),
        (["--clean", "{tmp}/wide.png", "--zoom", "99"], "found 31880"),
        (["--output", "{tmp}/strip.txt"], "expected a file name ending in .jpg"),
        (["--index", "-1"], "--index"),
        (["--noisy", "{tmp}/small.png"], "expected the size of"),
        (["--clean", "{tmp}/none.png"], "none.png"),
        ([], "pip install bm3d, or --peer nlm"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_error: Callable[[], str],
    more: list[str],
    expected: str,
) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((9, 9, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((48, 480, 3), np.uint8))
    output = tmp_path / "strip.png"
    assert pictures(*options_of(photo, output, *(text.format(tmp=tmp_path) for text in more))) == 2
    assert expected in one_error()
    assert not output.exists()


def test_existing_pictures_are_kept(photo: Path, tmp_path: Path, one_error: Callable[[], str]) -> None:
    output = tmp_path / "mine.png"
    output.write_text("mine")
    assert pictures(*options_of(photo, output)) == 2
    assert "--overwrite" in one_error()
    assert output.read_text() == "mine"


def write_log(folder: Path, lines: list[dict[str, Any]], torn: str = "") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def test_curves_of_runs(tmp_path: Path) -> None:
    losses = [{"step": step, "loss": 1 / step} for step in (100, 200, 300)]
    scores = [{"step": step, "psnr_sigma25": 30.0, "psnr_sigma50": 27.0} for step in (200, 300)]
    first = write_log(tmp_path / "first", losses + scores, torn='{"step": 4')
    second = write_log(tmp_path / "second", losses)
    for name in ("a.svg", "b.svg", "c.png"):
        assert pictures("curves", "--run", first, second, "--output", tmp_path / name) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    for text in ("first, sigma25", "first, sigma50", "<!-- second -->", "validation PSNR, dB", "steps"):
        assert text in svg
    assert "second, sigma" not in svg
    alone = tmp_path / "kept.jsonl"  # as in docs/results
    alone.write_bytes((first / "log.jsonl").read_bytes())
    assert pictures("curves", "--run", alone, "--output", tmp_path / "d.svg") == 0
    assert "kept, sigma25" in (tmp_path / "d.svg").read_text()
    assert read_picture(tmp_path / "c.png").pixels.shape == (825, 1200, 3)


def test_lines_that_are_no_figures_are_left_out(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [{"step": 1, "loss": 0.5, "note": "begun"}])
    odd = b'{"step": 2, "lo\xff\n5\n[]\n\n{"step": 3, "loss": null}\n{"loss": 1}\n{"step": "4", "loss": 1}\n{"step": 5'
    with (run / "log.jsonl").open("ab") as log:
        log.write(odd + b'\n{"step": 6, "loss": NaN, "psnr_a": 30}\n{"step": 7, "loss": 1, "psnr_a": true}\n{"st')
    curves = read_curves(run)
    assert curves.loss == [(1, 0.5), (7, 1)]
    assert curves.scores == {"a": [(6, 30)]}


def test_smoothing_is_a_weighted_mean() -> None:
    points = [(100, 1.0), (300, 5.0), (400, 2.0)]
    weights = np.exp([-3.0, -1.0, 0.0])
    assert smooth(points, 100)[0] == 1
    assert smooth(points, 100)[2] == pytest.approx(float(weights @ [1, 5, 2] / weights.sum()))
    assert smooth([(step, 0.5) for step in range(9)], 3) == pytest.approx([0.5] * 9)


def test_what_has_no_curve_is_one_line(tmp_path: Path, one_error: Callable[[], str]) -> None:
    empty = write_log(tmp_path / "empty", [])
    run = write_log(tmp_path / "run", [{"step": 1, "loss": 0.1}])
    for options, expected in (
        (["--run", tmp_path / "none", "--output", tmp_path / "a.svg"], "expected a run's folder with log.jsonl"),
        (["--run", empty, "--output", tmp_path / "a.svg"], "has the run begun?"),
        (["--run", run, "--output", tmp_path / "a.txt"], "expected a name ending in .svg or .png"),
        (["--run", run, "--output", tmp_path / "a.svg", "--smooth", "0"], "--smooth"),
    ):
        assert pictures("curves", *options) == 2
        assert expected in one_error()
        assert not list(tmp_path.glob("a.*"))
