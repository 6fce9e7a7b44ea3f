"""`runtime/infer.py` and `runtime/demo.py` as people run them."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.images import Picture, encode_picture, read_picture, write_picture
from common.metadata import Metadata
from runtime import infer, memory
from tests.runtime.video_clips import make

ROOT = Path(__file__).resolve().parents[2]
WriteModel = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path, write_model: WriteModel) -> Path:
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model" / "m.onnx", op="Identity")


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "runtime" / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def photo(
    path: Path, seed: int = 0, dtype: type[np.unsignedinteger] = np.uint8, size: tuple[int, int] = (37, 53)
) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(dtype)
    write_picture(path, Picture(pixels), overwrite=False)
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_photo_goes_beside_it(tmp_path: Path, model: Path) -> None:
    source = photo(tmp_path / "a b\nü.png")
    result = script("infer.py", source, "--engine", model)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 image in" in result.stdout
    assert "images/s" in result.stdout
    denoised = read_picture(tmp_path / "a b\nü_denoised.png")
    np.testing.assert_array_equal(denoised.pixels, read_picture(source).pixels)


def test_output_names_a_file_or_a_folder_that_exists(tmp_path: Path, model: Path) -> None:
    source = photo(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    for output in ("new/b.tiff", "out"):
        assert script("infer.py", source, "--engine", model, "--output", tmp_path / output).returncode == 0
    assert (tmp_path / "new" / "b.tiff").exists()
    assert (tmp_path / "out" / "a.png").exists()


def test_strength_and_depth_reach_the_file(tmp_path: Path, write_model: WriteModel) -> None:
    source = photo(tmp_path / "a.png", dtype=np.uint16)
    blur = write_model(tmp_path / "blur.onnx")
    for strength in ("0", "1"):
        output = tmp_path / f"{strength}.png"
        script("infer.py", source, "--engine", blur, "--strength", strength, "--output", output, "--tile", 64)
    before = read_picture(source).pixels
    assert read_picture(tmp_path / "1.png").pixels.dtype == np.uint16
    np.testing.assert_array_equal(read_picture(tmp_path / "0.png").pixels, before)
    assert not np.array_equal(read_picture(tmp_path / "1.png").pixels, before)


def test_a_folder_keeps_its_tree_and_a_bad_file_stops_nothing(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos / "a.png")
    photo(photos / "deep" / "b.JPG")
    photo(photos / "deep" / ".hidden.png")
    (photos / "notes.txt").write_text("no image")
    (photos / "bad.png").write_text("no image either")
    jpeg = encode_picture(read_picture(photos / "a.png"), ".jpg")[0]
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) * 9 // 10])
    (photos / "deep" / "circle").symlink_to(photos)
    result = script("infer.py", photos, "--engine", model)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert "bad.png" in lines[0]
    assert "cut.jpg" in lines[1]
    assert result.stdout.startswith("2 images in")
    assert "2 failed" in result.stdout
    assert tree(tmp_path / "photos_denoised") == ["a.png", "deep/b.JPG"]


def test_files_that_are_not_read_and_the_engine_are_told(tmp_path: Path, model: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.heic").touch()
    result = script("infer.py", tmp_path / "in", "--engine", model)
    assert (result.returncode, result.stderr) == (0, "note: files of kinds that are not read were left out: 1 .heic\n")
    assert result.stdout.endswith(f"CPU) -> {tmp_path / 'in_denoised'}\n")


def test_several_inputs_go_to_one_folder(tmp_path: Path, model: Path) -> None:
    inputs = [photo(tmp_path / "in" / "a.png"), photo(tmp_path / "b.png"), tmp_path / "missing.png"]
    result = script("infer.py", *inputs, "--engine", model, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert "missing.png: expected an image or video file or a folder" in result.stderr
    assert tree(tmp_path / "out") == ["a.png", "b.png"]


def test_a_folder_inside_its_input_is_not_denoised_again(tmp_path: Path, model: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    arguments = (tmp_path / "in", "--engine", model, "--output", tmp_path / "in" / "out", "--overwrite")
    for _ in range(2):
        assert script("infer.py", *arguments).returncode == 0
    assert tree(tmp_path / "in") == ["a.png", "out/a.png"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "photos"
    source = photo(photos / "a.png")
    photo(photos / "b.png")
    target = tmp_path / "photos_denoised" / "a.png"
    target.parent.mkdir()
    target.write_bytes(b"the user's")
    result = script("infer.py", photos, "--engine", model)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert result.stderr.count("\n") == 1
    assert (target.read_bytes(), tree(target.parent)) == (b"the user's", ["a.png", "b.png"])
    result = script("infer.py", source, "--output", target, "--engine", model)
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert target.read_bytes() == b"the user's"
    assert script("infer.py", photos, "--engine", model, "--overwrite").returncode == 0
    np.testing.assert_array_equal(read_picture(target).pixels, read_picture(source).pixels)


def test_an_input_is_never_overwritten(tmp_path: Path, model: Path) -> None:
    source = photo(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(source)
    before = source.read_bytes()
    for output in (source, tmp_path, tmp_path / "link.png"):
        result = script("infer.py", source, "--engine", model, "--output", output, "--overwrite")
        assert result.returncode == 2
        assert "an input" in result.stderr
    assert source.read_bytes() == before


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


def test_a_pattern_and_going_on_later(tmp_path: Path, model: Path) -> None:
    for name in ("a.png", "x/b.png", "x/c.jpg"):
        photo(tmp_path / "in" / name)
    pattern, output = tmp_path / "in" / "**" / "*.png", tmp_path / "out"
    arguments = (pattern, "--engine", model, "--output", output)
    assert script("infer.py", *arguments).returncode == 0
    assert tree(output) == ["a.png", "x/b.png"]
    (output / "a.png").unlink()
    before = (output / "x" / "b.png").stat().st_mtime_ns
    result = script("infer.py", *arguments, "--skip-existing")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("1 image in")
    assert result.stdout.endswith(f"CPU), 1 skipped -> {output}\n")
    assert tree(output) == ["a.png", "x/b.png"]
    assert (output / "x" / "b.png").stat().st_mtime_ns == before
    result = script("infer.py", *arguments, "--skip-existing")
    assert result.stdout == "0 images in 0.00 s (0.00 images/s), 2 skipped\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_whole_files_and_the_rest_is_done_later(
    tmp_path: Path, write_model: WriteModel, number: signal.Signals
) -> None:
    blur = write_model(tmp_path / "blur.onnx")
    first = photo(tmp_path / "in" / "000.png", size=(700, 700))
    for copy in range(1, 60):
        shutil.copy(first, tmp_path / "in" / f"{copy:03}.png")
    output = tmp_path / "out"
    command: list[str | Path] = [
        sys.executable,
        ROOT / "runtime" / "infer.py",
        tmp_path / "in",
        "--output",
        output,
        "--engine",
        blur,
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(output.glob("*.png")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (130, "")
    files = tree(output)
    assert 0 < len(files) < 60
    assert stdout.startswith(f"{len(files)} image")
    assert f"interrupted with {60 - len(files)} left: --skip-existing goes on" in stdout
    for name in files:
        assert read_picture(output / name).pixels.shape == (700, 700, 3)
    again = script("infer.py", *command[2:], "--skip-existing")
    assert (again.returncode, len(tree(output))) == (0, 60)


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
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    for number in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    result = script("infer.py", tmp_path / "in", "--engine", model)
    assert (result.returncode, result.stderr) == (0, "")


def test_models_by_name(tmp_path: Path) -> None:
    result = script("infer.py", "--list-models")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search("^blind_color +.*white Gaussian noise of sigma 0 to 75 \\(of 255\\)$", result.stdout, re.MULTILINE)
    assert re.search("^real_color +.*noise of cameras, with JPEG \\(the default\\)$", result.stdout, re.MULTILINE)
    source = photo(tmp_path / "a.png")
    for number, choice in enumerate(((), ("--model", "real_color"), ("--engine", infer.DEFAULT_ENGINE))):
        result = script("infer.py", source, *choice, "--output", tmp_path / f"{number}.png")
        assert (result.returncode, result.stderr) == (0, "")
    first, *others = ((tmp_path / f"{number}.png").read_bytes() for number in range(3))
    assert others == [first, first]


def test_a_word_about_gray_pictures(tmp_path: Path, write_model: WriteModel) -> None:
    """Once, however many there are, and only of models whose card says that they are for other noise."""
    colours = photo(tmp_path / "in" / "0.png")
    gray = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    write_picture(tmp_path / "in" / "1.png", Picture(gray), overwrite=False)
    write_picture(tmp_path / "in" / "2.png", Picture(np.repeat(gray[..., None], 3, axis=2)), overwrite=False)
    for number, (given, model, lines) in enumerate(
        [
            (tmp_path / "in", ("--model", "blind_color"), 1),
            (tmp_path / "in" / "2.png", ("--engine", ROOT / "assets" / "blind_color.onnx"), 1),
            (tmp_path / "in", (), 1),
            (tmp_path / "in", ("--engine", write_model(tmp_path / "mine.onnx", op="Identity")), 0),
            (colours, ("--model", "blind_color"), 0),
        ]
    ):
        (tmp_path / f"out{number}").mkdir()
        result = script("infer.py", given, *model, "--output", tmp_path / f"out{number}", "--tile", 64)
        assert (result.returncode, result.stderr.count("\n")) == (0, lines), result.stderr
        if lines:
            named = "blind_color" if model else "real_color"
            words = f"note: {named} leaves most of a gray picture's white noise: --model blind_gray removes more\n"
            assert result.stderr == words


def test_little_memory_makes_small_tiles_and_says_so(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photo(tmp_path / "a.png")
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    told = []
    monkeypatch.setattr(infer, "_own_stderr", partial(open, tmp_path / "told", "w"))
    options: dict[str, Any] = dict.fromkeys(("model", "depth", "threads"))
    options |= {"list_models": False, "strength": 1.0, "quality": 95, "overwrite": True, "skip_existing": False}
    for tile in (0, 512):
        infer.infer([source], engine=model, output=tmp_path / "b.png", tile=tile, max_megapixels=1, **options)
        told.append((tmp_path / "told").read_text())
    assert told == ["note: in tiles of 256 pixels, as little memory is free: --tile 512 insists\n", ""]


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


LARGE = """
import sys
from pathlib import Path
import cv2
import numpy as np
from common.images import Picture, read_picture, write_picture
from runtime.denoiser import Denoiser
from runtime.engines.base import Engine
from runtime.jobs import Job
from runtime.pipeline import denoise_files

class Negative(Engine):
    name, channels = "double", 3

    def _run(self, images):
        return 1 - images

folder = Path(sys.argv[1])
row = np.arange(10_000, dtype=np.uint8)
cv2.imwrite(str(folder / "a.jpg"), np.broadcast_to(row[:, None, None], (10_000, 10_000, 3)).copy())
jobs = [Job(folder / "a.jpg", folder / f"{number}.jpg") for number in range(2)]
summary = denoise_files(Denoiser(Negative()), jobs)
print(summary.done, 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


def test_a_100_megapixel_photo_stays_within_4_gb(tmp_path: Path) -> None:
    """Two of them, which are too large to be in memory together."""
    command: list[str | Path] = [sys.executable, "-c", LARGE, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    done, peak = map(int, result.stdout.split())
    assert done == 2
    assert 0.6e9 < peak < 4e9
    pixels = read_picture(tmp_path / "1.jpg").pixels
    assert pixels.shape == (10_000, 10_000, 3)
    assert np.abs(pixels[::997, 5000, 1] - (255.0 - np.arange(10_000, dtype=np.uint8)[::997])).max() <= 40


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
        ("good.png --output text.png/x.png", "cannot write"),
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


def test_nothing_of_training_is_imported() -> None:
    code = """
import json, sys
import runtime, runtime.infer, runtime.demo, runtime.engines.ort
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "train", "export", "onnx"})))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(result.stdout) == []


def test_the_demo_measures_and_draws(tmp_path: Path, write_model: WriteModel) -> None:
    blur = write_model(tmp_path / "blur.onnx")
    clean = np.full((120, 100, 3), 120, np.uint8)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 30, clean.shape), 0, 255).astype(np.uint8)
    write_picture(tmp_path / "clean.png", Picture(clean), overwrite=False)
    write_picture(tmp_path / "noisy.png", Picture(noisy), overwrite=False)
    arguments = ["--noisy", tmp_path / "noisy.png", "--clean", tmp_path / "clean.png", "--engine", blur]
    result = script("demo.py", *arguments, "--output", tmp_path / "demo")
    assert (result.returncode, result.stderr) == (0, "")
    again = script("demo.py", *arguments, "--output", tmp_path / "demo")  # only its own folder's files are replaced
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert script("demo.py", *arguments, "--output", tmp_path / "demo", "--overwrite").returncode == 0
    before, after = (float(line.split()[2]) for line in result.stdout.splitlines() if line.startswith("PSNR"))
    assert before == pytest.approx(18.6, abs=0.3)
    assert after > before + 4
    assert read_picture(tmp_path / "demo" / "denoised.png").pixels.shape == clean.shape
    assert read_picture(tmp_path / "demo" / "side_by_side.jpg").pixels.shape == (120, 300, 3)
    photo(tmp_path / "other.png")
    result = script("demo.py", "--noisy", tmp_path / "other.png", *arguments[2:], "--output", tmp_path / "demo")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "photos of one size, found 53x37" in result.stderr
