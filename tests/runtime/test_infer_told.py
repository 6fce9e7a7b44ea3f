"""`runtime/infer.py` as people run it: what it says, and how it refuses."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.images import Picture, encode_picture, read_picture, write_picture
from common.metadata import Metadata
from runtime import infer, memory
from runtime.jobs import Job, Plan
from runtime.pipeline import Summary
from tests.runtime.commands import ROOT, photo, script, tree
from tests.runtime.video_clips import make

WriteModel = Callable[..., Path]


def test_files_that_are_not_read_and_the_engine_are_told(tmp_path: Path, model: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.heic").touch()
    result = script("infer.py", tmp_path / "in", "--engine", model)
    assert (result.returncode, result.stderr) == (0, "note: files of kinds that are not read were left out: 1 .heic\n")
    assert result.stdout.endswith(f"CPU) -> {tmp_path / 'in_denoised'}\n")


def test_lost_metadata_and_unfit_formats_are_told(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "a.png"
    metadata: Metadata = {"EXIF": b"MM\0*\0\0\0\x08\0\0\0\0\0\0"}
    write_picture(source, Picture(np.full((16, 16, 3), 257 * 9 + 128, np.uint16), metadata=metadata), overwrite=False)
    result = script("infer.py", source, "--engine", model, "--output", tmp_path / "b.bmp")
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert "8 bits" in result.stderr
    assert "--depth 8" in result.stderr
    result = script("infer.py", source, "--engine", model, "--output", tmp_path / "b.bmp", "--depth", 8)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "b.bmp does not keep the metadata of" in result.stderr
    assert "(EXIF)" in result.stderr
    assert set(np.unique(read_picture(tmp_path / "b.bmp").pixels)) == {9}
    result = script("infer.py", source, "--engine", model, "--output", tmp_path / "b.tif")
    assert (result.returncode, result.stderr) == (0, "")


def test_progress_on_a_terminal(tmp_path: Path, model: Path) -> None:
    """A bar with the time that is left, above it a line for every fault, and nothing of the bar once it is over."""
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png", size=(600, 600))
    (tmp_path / "in" / "bad [red] \x1b.png").write_text("no image")
    ours, theirs = pty.openpty()
    command: list[str | Path] = [sys.executable, ROOT / "runtime" / "infer.py", tmp_path / "in", "--engine", model]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as running:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what reading from a terminal raises when its other end is closed
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
    text = shown.decode()
    assert running.returncode == 1
    assert "denoising" in text
    assert "/4" in text
    assert "left" in text
    (error,) = (line for line in text.split("\r\n") if "error: " in line)
    assert "bad [red] \N{REPLACEMENT CHARACTER}.png: expected an image" in error


def test_codecs_are_kept_off_stderr(tmp_path: Path, model: Path) -> None:
    data = bytearray(encode_picture(read_picture(photo(tmp_path / "a.png", size=(64, 64))), ".jpg")[0])
    data[-2:-2] = bytes(20)  # libjpeg speaks of them; the picture is whole
    for number in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    result = script("infer.py", tmp_path / "in", "--engine", model)
    assert (result.returncode, result.stderr) == (0, "")


def test_models_by_name(tmp_path: Path) -> None:
    result = script("infer.py", "--list-models")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search("^blind_color +.*white Gaussian noise of sigma 0 to 75 \\(of 255\\)$", result.stdout, re.MULTILINE)
    assert re.search("^real_color +.*noise of cameras \\(the default\\)$", result.stdout, re.MULTILINE)
    source = photo(tmp_path / "a.png")
    for number, choice in enumerate(((), ("--model", "real_color"), ("--engine", infer.DEFAULT_ENGINE))):
        result = script("infer.py", source, *choice, "--output", tmp_path / f"{number}.png")
        assert (result.returncode, result.stderr) == (0, "")
    first, *others = ((tmp_path / f"{number}.png").read_bytes() for number in range(3))
    assert others == [first, first]


def test_a_word_about_gray_pictures(tmp_path: Path, write_model: WriteModel) -> None:
    """Once, however many there are, and only of models whose card says that they know none."""
    colours = photo(tmp_path / "in" / "0.png")
    gray = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    write_picture(tmp_path / "in" / "1.png", Picture(gray), overwrite=False)
    write_picture(tmp_path / "in" / "2.png", Picture(np.repeat(gray[..., None], 3, axis=2)), overwrite=False)
    for number, (given, model, lines) in enumerate(
        [
            (tmp_path / "in", ("--model", "blind_color"), 1),
            (tmp_path / "in" / "2.png", ("--engine", ROOT / "assets" / "blind_color.onnx"), 1),
            (tmp_path / "in", (), 0),
            (tmp_path / "in", ("--engine", write_model(tmp_path / "mine.onnx", op="Identity")), 0),
            (colours, ("--model", "blind_color"), 0),
        ]
    ):
        (tmp_path / f"out{number}").mkdir()
        result = script("infer.py", given, *model, "--output", tmp_path / f"out{number}", "--tile", 64)
        assert (result.returncode, result.stderr.count("\n")) == (0, lines), result.stderr
        if lines:
            words = "leaves most of a gray picture's noise: --model blind_gray or real_color removes more"
            assert result.stderr == f"note: blind_color {words}\n"


def test_little_memory_makes_small_tiles_and_says_so(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photo(tmp_path / "a.png")
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    told = []
    monkeypatch.setattr(infer, "_own_stderr", partial(open, tmp_path / "told", "w"))
    options: dict[str, Any] = dict.fromkeys(("model", "depth", "threads"))
    options |= {"list_models": False, "strength": 1.0, "quality": 95, "overwrite": True, "skip_existing": False}
    for tile in (0, 256, 512):
        infer.infer([source], engine=model, output=tmp_path / "b.png", tile=tile, max_megapixels=1, **options)
        told.append((tmp_path / "told").read_text())
    assert told == ["note: in tiles of 256 pixels, as little memory is free: --tile 512 insists\n", "", ""]


def test_what_another_run_has_done_meanwhile_is_not_left() -> None:
    plan = Plan(jobs=[Job(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(9)])
    line = infer._told(Summary(done=3, skipped=2, interrupted=""), plan, 0, "")
    assert line.startswith("3 images, 2 skipped, interrupted with 4 left: ")


def test_a_word_about_flicker_and_depth(tmp_path: Path, model: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    for name in ("clip.mp4", "other.mp4"):
        make(tmp_path / "in" / name, frames=3)
    result = script("infer.py", tmp_path / "in", "--engine", model, "--depth", 8)
    assert (result.returncode, tree(tmp_path / "in_denoised")) == (0, ["a.png", "clip.mp4", "other.mp4"])
    flicker, depth = result.stderr.splitlines()
    assert flicker.startswith("note: frames are denoised one by one")
    assert "flicker" in flicker
    assert depth == "note: --depth is of images, videos keep theirs"
    assert result.stdout.startswith("3 files in")


def test_large_pictures_only_when_asked_for(tmp_path: Path, model: Path) -> None:
    source = photo(tmp_path / "a.png", size=(1001, 1000))
    result = script("infer.py", source, "--engine", model, "--max-megapixels", 1)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "expected at most 1 megapixels, found 1.0 (1000x1001): raise --max-megapixels" in result.stderr
    assert script("infer.py", source, "--engine", model, "--max-megapixels", 2).returncode == 0


@pytest.fixture
def bad(tmp_path: Path, write_model: WriteModel) -> Path:
    """A folder with one of everything that is refused, and one good photo."""
    folder = tmp_path / "bad"
    good = photo(folder / "good.png")
    (folder / "text.png").write_text("no image")
    jpeg = encode_picture(read_picture(good), ".jpg")[0]
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) * 9 // 10])
    (folder / "empty").mkdir()
    (folder / "zero.onnx").touch()
    write_model(folder / "other.onnx", marked=False)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("missing.png", "missing.png: expected an image or video file or a folder, found nothing of that name"),
        ("empty", "expected a folder with images"),
        ("text.png", "found a file of another kind"),
        ("cut.jpg", "found a JPEG file that cannot be decoded"),
        ("zero.onnx", "found '.onnx'"),
        ("good.png --engine zero.onnx", "expected an ONNX model, found an empty file"),
        ("good.png --engine other.onnx", "is another network"),
        ("good.png --engine missing.onnx", "expected a model file, found no such file"),
        ("good.png --engine text.png", "ending in .onnx"),
        (f"{'x' * 300}.png", "File name too long"),
        (f"good.png --engine {'x' * 300}.onnx", "File name too long"),
        (f"good.png --output {'x' * 300}.png", "File name too long"),
        ("good.png --tile -64", "tile: expected 0 (automatic) or a multiple of 8 from 64 pixels up, found -64"),
        ("good.png --tile 100", "found 100"),
        ("good.png --tile big", "Invalid value for '--tile'"),
        ("good.png --strength 2", "strength: expected 0 (the input) to 1 (denoised), found 2.0"),
        ("good.png --strength nan", "found nan"),
        ("good.png --format gif", "--format: expected jpg, png, tif, webp or bmp, found 'gif'"),
        ("good.png --quality 0", "quality: expected 1 to 100, found 0"),
        ("good.png --depth 16", "depth: expected 8, or none to keep the picture's own, found 16"),
        ("good.png --model none", "--model none: expected blind_color"),
        ("good.png --model blind_color --engine x.onnx", "expected one of --engine and --model, found both"),
        ("good.png --overwrite --skip-existing", "expected one of --overwrite and --skip-existing, found both"),
        ("good.png --max-megapixels 2000", "--max-megapixels: expected 1 to 1073, found 2000"),
        ("nothing*.png", "nothing*.png: expected images or videos"),
        ("good.png --threads 0", "--threads: expected 1 to "),
        ("good.png --output x.gif", "expected a file name ending in"),
        ("good.png good.png --output text.png", "expected a folder to write several files to, found a file"),
        ("good.png --output text.png/x.png", "text.png is not a folder"),
        ("--nonsense", "No such option"),
        ("", "Missing argument"),
    ],
)
def test_bad_input_is_one_line(bad: Path, model: Path, arguments: str, words: str) -> None:
    names = {path.name for path in bad.iterdir()} | {"missing.png", "missing.onnx", "x.gif", "text.png/x.png"}
    argv = [str(bad / part) if part in names else part for part in arguments.split()]
    before = tree(bad)
    result = script("infer.py", *argv, *([] if {"--engine", "--model"} & set(argv) else ["--engine", model]))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert result.stdout == ""
    assert tree(bad) == before


def test_help_lists_the_options() -> None:
    result = script("infer.py", "--help")
    assert result.returncode == 0
    assert "--strength" in result.stdout
    assert "pip install -e '.[video]'" in " ".join(result.stdout.split())
