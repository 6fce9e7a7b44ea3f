"""`runtime/infer.py` and `runtime/demo.py` as people run them: the files."""

import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.images import Picture, encode_picture, read_picture, write_picture
from runtime import Denoiser
from tests.runtime.commands import ROOT, photo, script, tree

WriteModel = Callable[..., Path]


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


def test_a_folder_of_another_format(tmp_path: Path, model: Path) -> None:
    pixels = read_picture(photo(tmp_path / "in" / "a.png", dtype=np.uint16)).pixels
    photo(tmp_path / "in" / "deep" / "b.jfif")
    result = script("infer.py", tmp_path / "in", "--engine", model, "--format", "TIF", "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path / "out") == ["a.tif", "deep/b.tif"]
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "a.tif").pixels, pixels)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    result = script("infer.py", tmp_path / "in", "--output", "/proc/out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot make the folder /proc/out")


def test_the_version() -> None:
    assert script("infer.py", "--version").stdout == f"sadnet-trt {importlib.metadata.version('sadnet-trt')}\n"


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
    assert result.stdout == "0 images, 2 skipped\n"


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
    assert (running.returncode, stderr) == (130, "interrupted\n")
    files = tree(output)
    assert 0 < len(files) < 60
    assert stdout.startswith(f"{len(files)} image")
    assert f"interrupted with {60 - len(files)} left: --skip-existing goes on" in stdout
    for name in files:
        assert read_picture(output / name).pixels.shape == (700, 700, 3)
    again = script("infer.py", *command[2:], "--skip-existing")
    assert (again.returncode, len(tree(output))) == (0, 60)


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
    photo(tmp_path / "other.png")
    arguments = ["--noisy", tmp_path / "noisy.png", "--clean", tmp_path / "clean.png", "--engine", blur]
    arguments += ["--photo", tmp_path / "other.png"]
    result = script("demo.py", *arguments, "--output", tmp_path / "demo")
    assert (result.returncode, result.stderr) == (0, "")
    again = script("demo.py", *arguments, "--output", tmp_path / "demo")  # only its own folder's files are replaced
    assert (again.returncode, again.stderr.count("\n"), again.stdout) == (2, 1, "")
    assert script("demo.py", *arguments, "--output", tmp_path / "demo", "--overwrite").returncode == 0
    before, after = (float(line.split()[2]) for line in result.stdout.splitlines() if line.startswith("PSNR"))
    assert before == pytest.approx(18.6, abs=0.3)
    assert after > before + 4
    assert read_picture(tmp_path / "demo" / "denoised.png").pixels.shape == clean.shape
    assert read_picture(tmp_path / "demo" / "side_by_side.jpg").pixels.shape == (120, 300, 3)
    sides = read_picture(tmp_path / "demo" / "photo_side_by_side.jpg").pixels.astype(int)
    taken = read_picture(tmp_path / "other.png").pixels.astype(np.uint8)
    with Denoiser(ROOT / "assets" / "real_color.onnx") as denoiser:
        restored = denoiser.denoise(taken)
    unlabelled = slice(32, None)
    assert np.abs(restored[unlabelled].astype(int) - taken[unlabelled]).mean() > 8
    for side, expected in ((sides[:, :53], taken), (sides[:, 53:], restored)):
        assert np.abs(side[unlabelled] - expected[unlabelled]).mean() < 4  # JPEG's
    result = script("demo.py", "--noisy", tmp_path / "other.png", *arguments[2:], "--output", tmp_path / "demo")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "photos of one size, found 53x37" in result.stderr
