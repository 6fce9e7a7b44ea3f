"""Whatever lies in a folder: no crash, no hang, no file that is not whole or not asked for, one line for each fault."""

import io
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from common.images import read_picture

ROOT = Path(__file__).resolve().parents[2]
WriteModel = Callable[..., Path]
SEED, FLIPPED, CUT = 6, 12, 5


def infer(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `limit`: bytes that a file may have."""
    return run(str(ROOT / "runtime" / "infer.py"), *arguments, limit=limit)


def run(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=ROOT,
        env=environment,
        timeout=120,
        check=False,
        preexec_fn=small_files if limit else None,
    )


PEAK = """
import atexit, runpy, sys
from pathlib import Path
note = Path(sys.argv.pop(1))
atexit.register(lambda: note.write_text(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
sys.argv[0] = "runtime/infer.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the command and notes the most memory that it had, in KB; what a parent is told counts its own."""


@pytest.fixture
def model(tmp_path: Path, write_model: WriteModel) -> Path:
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model" / "m.onnx", op="Identity")


def samples() -> dict[str, bytes]:
    """A small picture in many kinds of each format."""
    small = np.random.default_rng(SEED).random((5, 7, 3))
    pixels = (cv2.resize(small, (61, 47), interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)
    colour = Image.fromarray(pixels)
    gray, palette, alpha = colour.convert("L"), colour.quantize(16), colour.copy()
    alpha.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found: dict[str, bytes] = {}

    def pillow(name: str, image: Image.Image, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        found[name] = file.getvalue()

    pillow("plain.jpg", colour, exif=exif, icc_profile=profile)
    pillow("progressive.jpg", colour, progressive=True)
    pillow("gray.jpg", gray)
    pillow("cmyk.jpg", colour.convert("CMYK"))
    pillow("plain.png", colour, exif=exif, icc_profile=profile)
    pillow("palette.png", palette)
    pillow("alpha.png", alpha)
    pillow("gray alpha.png", alpha.convert("LA"))
    pillow("lossy.webp", colour, exif=exif, icc_profile=profile)
    pillow("lossless.webp", colour, lossless=True)
    pillow("alpha.webp", alpha)
    pillow("plain.bmp", colour)
    pillow("palette.bmp", palette)
    pillow("alpha.bmp", alpha)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        pillow(f"{compression}.tif", colour, compression=compression, exif=exif)
    pillow("fax.tif", gray.convert("1"), compression="group4")
    found["deep.png"] = cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()
    kinds: dict[str, dict[str, Any]] = {
        "tiled": {"tile": (16, 16)},
        "big": {"bigtiff": True},
        "other order": {"byteorder": ">", "compression": "zlib"},
    }
    for name, options in kinds.items():
        tifffile.imwrite(file := io.BytesIO(), pixels.astype(np.uint16) * 257, photometric="rgb", **options)
        found[f"{name}.tif"] = file.getvalue()
    return found


def damaged(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """With flipped bits, half of them in the header; and cut off."""
    for _ in range(FLIPPED):
        flipped = bytearray(data)
        end = chance.choice([len(data), min(len(data), 200)])
        for _ in range(chance.choice([1, 2, 8])):
            flipped[chance.randrange(end)] ^= 1 << chance.randrange(8)
        yield bytes(flipped)
    for _ in range(CUT):
        yield data[: chance.randrange(1, len(data) - 1)]


def png(width: int, height: int, compressed: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that states another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def with_width(data: bytes, width: int) -> bytes:
    """A TIFF of the order "<" that states another width."""
    at = struct.unpack_from("<I", data, 4)[0] + 2
    while struct.unpack_from("<H", data, at)[0] != 256:
        at += 12
    return data[:at] + struct.pack("<HHII", 256, 4, 1, width) + data[at + 12 :]


def bombs() -> dict[str, bytes]:
    """Files of a few KB that would fill the memory."""
    found = samples()
    dense = zlib.compress(bytes(3 * 20_000 * 2000 + 2000), 9)
    tiff_bomb = io.BytesIO()
    tifffile.imwrite(tiff_bomb, np.zeros((4000, 10_000, 3), np.uint8), photometric="rgb", compression="zlib")
    return {
        "zlib.png": png(20_000, 2000, dense),
        "wide.png": png(16_000_000, 1, dense),
        "endless.png": png(2**31 - 1, 2**31 - 1, dense),
        "chunk.png": found["plain.png"].replace(b"IEND", b"IDAT").replace(b"\0\0\0\0IDAT", b"\x60\0\0\0IDAT"),
        "empty.png": png(900, 900, zlib.compress(b"")),
        "zlib.tif": tiff_bomb.getvalue(),
        "wide.tif": with_width(found["tiled.tif"], 16_000_000),
        "large.jpg": with_size(found["plain.jpg"], 65_500, 65_500),
        "large.bmp": found["plain.bmp"][:18] + struct.pack("<ii", 16_000_000, -4) + found["plain.bmp"][26:],
        "large.webp": found["lossy.webp"][:24] + b"\xff" * 6 + found["lossy.webp"][30:],
    }


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def check(result: subprocess.CompletedProcess[str], source: Path, output: Path, files: set[str]) -> set[str]:
    """Every file is either written, whole, or named in one line. Returns those that were written."""
    written = tree(output)
    lines = result.stderr.splitlines()
    assert result.returncode in (0, 1), result.stderr[-3000:]
    assert all(line.startswith(("error: ", "note: ")) for line in lines), result.stderr[-3000:]
    failed = [line for line in lines if line.startswith("error: ")]
    assert f"{len(written)} images in" in result.stdout
    assert written <= files
    assert len(failed) == len(files - written)
    for name in files - written:
        assert any(f"{source / name}: " in line for line in failed), name
    for name in written:
        read_picture(output / name)
    return written


def test_damaged_files_of_every_format(tmp_path: Path, model: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    chance = random.Random(SEED)
    for name, data in samples().items():
        (source / name).write_bytes(data)
        for number, bad in enumerate(damaged(data, chance)):
            (source / f"{number} {name}").write_bytes(bad)
    before = {path: path.read_bytes() for path in source.iterdir()}
    result = infer(source, "--output", output, "--engine", model, "--max-megapixels", 1)
    written = check(result, source, output, tree(source))
    assert set(samples()) <= written
    assert len(before) - len(written) > len(before) / 4
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "model"}


def test_bombs_are_refused_at_once(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, data in bombs().items():
        assert len(data) < 200_000
        (source / name).write_bytes(data)
    options = ("--output", tmp_path / "out", "--engine", model, "--max-megapixels", 30)
    result = run("-c", PEAK, tmp_path / "peak", source, *options)
    assert check(result, source, tmp_path / "out", tree(source)) == set()
    assert int((tmp_path / "peak").read_text()) < 300_000
    assert "zlib.png: expected at most 30 megapixels, found 40.0 (20000x2000)" in result.stderr
    for name, size in (("wide.png", "16000000x1"), ("wide.tif", "16000000x47")):
        assert f"{name}: expected at most 2^30 pixels and 2^20 a side, found {size}:" in result.stderr
    larger = infer(source / "zlib.png", "--output", tmp_path / "b.png", "--engine", model, "--max-megapixels", 40)
    assert (larger.returncode, larger.stderr) == (0, "")


NAMES = (
    *(" ", "a b", "a\nb", "a\tb\r", "ü", "写真", "صورة", "🌅", "-", "--help", "~", "$HOME", "'\"", "\\n", "\x1b[2J"),
    *("*", "[a]", "?", "a;b", "%s", "{}", "\udcff\udcfe", "x" * 240),
)


def test_any_name_of_a_file(tmp_path: Path, model: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    good = samples()["plain.png"]
    for name in NAMES:
        (source / f"{name}.png").write_bytes(good)
        (source / f"{name}bad.png").write_bytes(good[:-40])
    result = infer(source, "--output", output, "--engine", model)
    assert {Path(name).name for name in tree(output)} == {f"{name}.png" for name in NAMES}
    lines = result.stderr.splitlines()
    assert len(lines) == len(NAMES)
    assert all(line.startswith("error: ") and "cannot be decoded" in line for line in lines)
    assert "\x1b" not in result.stderr
    result = infer("--engine", model, "--output", tmp_path / "alone", "--", *(source / f"{name}.png" for name in NAMES))
    assert (result.returncode, result.stderr) == (0, "")
    assert len(tree(tmp_path / "alone")) == len(NAMES)
    alone = infer("--engine", model, "--", source / "a\nb.png")
    assert (alone.returncode, alone.stderr, alone.stdout.count("\n")) == (0, "", 1)


def test_what_is_no_file(tmp_path: Path, model: Path) -> None:
    source, output, elsewhere = tmp_path / "in", tmp_path / "out", tmp_path / "elsewhere"
    (source / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "b.png").write_bytes(samples()["plain.png"])
    (source / "good.png").symlink_to(elsewhere / "b.png")
    os.mkfifo(source / "pipe.png")
    os.mkfifo(source / "pipe.mp4")
    (source / "zero.png").symlink_to("/dev/zero")
    (source / "loop.png").symlink_to(source / "loop.png")
    (source / "gone.png").symlink_to(source / "nothing")
    (source / "deep" / "up").symlink_to(source)
    (source / "deep" / "over").symlink_to(elsewhere)
    (source / "deep" / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(source)
        try:
            listening.bind("socket.png")  # names of sockets are short
        finally:
            os.chdir(ROOT)
        for given in (source, source / "**" / "*"):
            result = infer(given, "--output", output, "--engine", model)
            assert result.returncode == 1
            assert tree(output) == {"good.png"}
            assert not (output / "good.png").is_symlink()
            (output / "good.png").unlink()
            note, *errors = result.stderr.splitlines()
            assert note.startswith("note: frames are denoised one by one")  # pipe.mp4 is called a video
            named = {Path(line.split(": ")[1]).name for line in errors}
            assert named == {"pipe.png", "pipe.mp4", "zero.png", "loop.png", "gone.png", "socket.png"}
    assert tree(elsewhere) == {"b.png"}


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, model: Path) -> None:
    """The kernel takes the first kilobyte of every file and no more."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("plain.jpg", "plain.png", "plain.bmp", "tiff_lzw.tif"):
        (source / name).write_bytes(samples()[name])
    Image.new("RGB", (8, 8)).save(source / "tiny.png")
    result = infer(source, "--output", output, "--engine", model, limit=1000)
    assert tree(output) == {"tiny.png"}
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert all("cannot write" in line and "File too large" in line for line in lines)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(samples()["plain.png"])
    locked = Path("/proc/denoised")  # where nobody can make one
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o555)
        locked = tmp_path / "locked" / "denoised"
    result = infer(source, "--output", locked / "a.png", "--engine", model)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert f"cannot make the folder {locked}: " in result.stderr
