"""The C++ program over doubles of CUDA and TensorRT: what it computes, and that each failure is one line and code 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.examples.conftest import Run, failure

Array = NDArray[Any]


def plan(
    folder: Path, kind: str, least: Sequence[int], most: Sequence[int] | None = None, plugin: str = "alone"
) -> Path:
    """A plan of the double for inputs of these shapes."""
    path = folder / "net.plan"
    path.write_text(" ".join(["double", kind, plugin, *map(str, [*least, *(most or least)])]))
    return path


def picture(folder: Path, name: str, width: int, height: int) -> Array:
    samples = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    (folder / name).write_bytes(b"P6 %d %d 255\n" % (width, height) + samples.tobytes())
    return samples


def written(path: Path, samples: Array) -> bool:
    """Whether the file holds what the double's network makes of these, padded already; of their upper left part."""
    header = b"P6\n%d %d\n255\n" % samples.shape[1::-1]
    return path.read_bytes() == header + samples.tobytes()


def through_network(samples: Array, width: int, height: int) -> Array:
    """Padded to this size, mirrored, colours turned round, cropped: the double's network and the program around it."""
    h, w = samples.shape[:2]
    padded = np.pad(samples, [(0, height - h), (0, width - w), (0, 0)], mode="reflect")
    return np.ascontiguousarray(padded[:h, ::-1, ::-1][:, :w])


@pytest.mark.parametrize(("kind", "shape"), [("float32", (1, 3, 24, 40)), ("uint8", (1, 24, 40, 3))])
def test_pictures_go_through_a_plan_of_one_size(run: Run, tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    """Of its size, a little smaller, and much smaller; the second and later runs are the CUDA graph's."""
    path = plan(tmp_path, kind, shape)
    sizes = [(40, 24), (33, 23), (40, 24), (1, 1), (2, 7)]
    pictures = [picture(tmp_path, f"{i}.ppm", *size) for i, size in enumerate(sizes)]
    result = run(path, *(f"{i}{end}.ppm" for i in range(len(sizes)) for end in ("", "-out")))
    assert result.returncode == 0, result.stderr
    for i, samples in enumerate(pictures):
        assert written(tmp_path / f"{i}-out.ppm", through_network(samples, 40, 24)), i
    assert [line.split(" pixels")[0] for line in result.stdout.splitlines()] == [
        f"{i}-out.ppm: {width}x{height}" for i, (width, height) in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("float32", (1, 3, 16, 8), (1, 3, 32, 64)), ("uint8", (1, 16, 8, 3), (1, 32, 64, 3))],
)
def test_pictures_of_many_sizes_are_padded_to_multiples_of_8(
    run: Run, tmp_path: Path, kind: str, least: tuple[int, ...], most: tuple[int, ...]
) -> None:
    path = plan(tmp_path, kind, least, most)
    sizes = {(17, 20): (24, 24), (5, 3): (8, 16), (64, 32): (64, 32), (57, 25): (64, 32), (8, 17): (8, 24)}
    pictures = [picture(tmp_path, f"{i}.ppm", *size) for i, size in enumerate(sizes)]
    order = [0, 0, 1, 2, 3, 1, 4, 4, 0]
    result = run(path, *(name for step, i in enumerate(order) for name in (f"{i}.ppm", f"out{step}.ppm")))
    assert result.returncode == 0, result.stderr
    for step, i in enumerate(order):
        expected = through_network(pictures[i], *list(sizes.values())[i])
        assert written(tmp_path / f"out{step}.ppm", expected), step


@pytest.mark.parametrize("size", [(41, 24), (40, 25), (4000, 3000)])
def test_a_picture_larger_than_the_plan_is_refused(run: Run, tmp_path: Path, size: tuple[int, int]) -> None:
    path = plan(tmp_path, "uint8", (1, 24, 40, 3))
    picture(tmp_path, "a.ppm", *size)
    assert failure(run(path, "a.ppm", "b.ppm")).startswith(
        f"error: expected a picture of at most 40x24 pixels, which {path} takes, found {size[0]}x{size[1]}"
    )
    assert not (tmp_path / "b.ppm").exists()


def test_every_call_that_fails_is_one_line(run: Run, tmp_path: Path, library: str) -> None:
    """One after the other, until none does; the sanitizers find nothing, leaks included, and no file is half made."""
    plugin = "alone" if library == "TensorRT-RTX" else "plugin"
    path = plan(tmp_path, "float32", (1, 3, 24, 40), plugin=plugin)
    picture(tmp_path, "a.ppm", 40, 24)
    options = [] if plugin == "alone" else ["--plugin", "libsadnet_plugin.so"]
    names = ["b.ppm", "c.ppm"]
    lines = []
    for call in range(1, 100):
        for name in (*names, "net.plan.cache"):
            (tmp_path / name).unlink(missing_ok=True)
        result = run(*options, path, "a.ppm", "b.ppm", "a.ppm", "c.ppm", fails=call)
        if result.returncode == 0:  # the runtime cache alone may be lost
            assert all((tmp_path / name).exists() for name in names)
            if (tmp_path / "net.plan.cache").exists() == (library == "TensorRT-RTX"):
                break
            assert result.stderr.endswith("net.plan: cannot make a runtime cache: it gave no reason\n")
            continue
        lines.append(failure(result))
        left = {entry.name for entry in tmp_path.iterdir()} - {"a.ppm", "net.plan", "b.ppm"}
        assert not left
    assert len(lines) >= 20
    assert any("cannot be run: the double fails" in line for line in lines)  # the library's log, in one line
    assert any("no such plan" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "expected a file, found none"),
        ("", "found one that does not load: no such plan"),
        ("garbage", "found one that does not load: no such plan"),
        ("double float16 alone 1 3 24 40 1 3 24 40", "expected float32 or uint8 images on both sides, found others"),
        ("double float32 alone 1 1 24 40 1 1 24 40", "expected a plan of one colour image, found another"),
        ("double float32 alone 1 3 24 40 4 3 24 40", "expected a plan of one colour image, found another"),
        ("double uint8 alone 1 3 24 40 1 3 24 40", "expected a plan of one colour image, found another"),
    ],
)
def test_plans_of_other_kinds_are_refused(run: Run, tmp_path: Path, text: str | None, error: str) -> None:
    if text is not None:
        (tmp_path / "net.plan").write_text(text)
    picture(tmp_path, "a.ppm", 40, 24)
    line = failure(run("net.plan", "a.ppm", "b.ppm"))
    assert line.startswith("error: net.plan: ")
    assert error in line


@pytest.mark.parametrize(
    "arguments", [[], ["net.plan"], ["net.plan", "a.ppm"], ["--plugin"], ["--plugin", "x", "y", "z"]]
)
def test_wrong_arguments_are_told_the_right_ones(run: Run, arguments: list[str]) -> None:
    expected = "error: expected [--plugin LIBRARY] PLAN INPUT.ppm OUTPUT.ppm [INPUT.ppm OUTPUT.ppm ...]"
    assert failure(run(*arguments)) == expected


def test_a_bad_picture_leaves_the_results_before_it(run: Run, tmp_path: Path) -> None:
    path = plan(tmp_path, "uint8", (1, 24, 40, 3))
    picture(tmp_path, "a.ppm", 40, 24)
    (tmp_path / "bad.ppm").write_bytes(b"\xff\xd8 no PPM")
    line = failure(run(path, "a.ppm", "b.ppm", "bad.ppm", "c.ppm"))
    assert line == "error: bad.ppm: expected a binary PPM picture (P6), found another file"
    assert (tmp_path / "b.ppm").exists()
    assert not (tmp_path / "c.ppm").exists()


def test_plugins(run: Run, tmp_path: Path, library: str) -> None:
    """A plan that needs one does not load without, and a relative path is not looked for in the system's folders."""
    path = plan(tmp_path, "uint8", (1, 24, 40, 3), plugin="plugin")
    picture(tmp_path, "a.ppm", 40, 24)
    files = (path, "a.ppm", "b.ppm")
    if library == "TensorRT-RTX":
        expected = "error: libsadnet_plugin.so: expected no plugin: TensorRT-RTX takes none, and its plans need none"
        assert failure(run("--plugin", "libsadnet_plugin.so", *files)) == expected
        return
    assert "found one that does not load" in failure(run(*files))
    assert failure(run("--plugin", "other.so", *files)).startswith(
        "error: other.so: expected a TensorRT plugin library"
    )
    assert run("--plugin", "libsadnet_plugin.so", *files).returncode == 0


def test_the_runtime_cache(run: Run, tmp_path: Path, library: str) -> None:
    """TensorRT-RTX's is saved beside the plan, read by the next start, and replaced where it is another's."""
    path = plan(tmp_path, "uint8", (1, 24, 40, 3))
    picture(tmp_path, "a.ppm", 40, 24)
    cache = tmp_path / "net.plan.cache"
    assert run(path, "a.ppm", "b.ppm").returncode == 0
    if library == "TensorRT":
        assert not cache.exists()
        return
    assert cache.read_text() == "compiled"
    before = cache.stat()
    assert run(path, "a.ppm", "b.ppm").returncode == 0
    assert cache.stat() == before
    cache.write_text("another GPU's")
    result = run(path, "a.ppm", "b.ppm")
    assert result.returncode == 0
    assert result.stderr.endswith("net.plan.cache is of another GPU, driver or version: it will be replaced\n")
    assert cache.read_text() == "compiled"
