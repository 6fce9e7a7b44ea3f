"""ONNX Runtime: what it runs, and what it refuses in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DependencyError, InputError, ModelError
from runtime import Denoiser
from runtime.engines import open_engine, ort
from runtime.engines.base import SizeRange

ROOT = Path(__file__).resolve().parents[2]
WriteModel = Callable[..., Path]


def blurred(images: np.ndarray) -> np.ndarray:
    """A 3x3 box blur with zeros around the picture."""
    height, width = images.shape[-2:]
    padded = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = (padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.asarray(sum(windows) / 9)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_runs_a_model(tmp_path: Path, write_model: WriteModel, channels: int, half: bool) -> None:
    images = np.random.default_rng(0).random((3, channels, 16, 24)).astype(np.float32)
    with open_engine(write_model(tmp_path / "m.onnx", channels=channels, half=half), threads=1) as engine:
        assert (engine.channels, engine.sizes) == (channels, (SizeRange(),))
        assert "ONNX Runtime" in engine.name
        output = engine.run(images)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, blurred(images), atol=2e-3 if half else 1e-6)


def test_a_model_of_one_size(tmp_path: Path, write_model: WriteModel) -> None:
    path = write_model(tmp_path / "m.onnx", size=(64, 96), op="Identity")
    image = np.random.default_rng(0).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    with Denoiser(path) as denoiser:
        assert denoiser.engine.sizes == (SizeRange((64, 96), (64, 96)),)
        np.testing.assert_array_equal(denoiser.denoise(image), image)


def test_a_device_is_timed_on_images_that_are_there_already(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).random((1, 3, 16, 24)).astype(np.float32)
    engine = ort.OrtEngine(write_model(tmp_path / "m.onnx"))
    assert engine.seconds_on_device(images, 3) is None
    engine._device = "cpu"  # in place of a GPU
    outputs, run = [], engine._session.run_with_iobinding

    def noted(binding: Any) -> None:
        run(binding)
        outputs.extend(binding.copy_outputs_to_cpu())

    monkeypatch.setattr(engine._session, "run_with_iobinding", noted)
    seconds = engine.seconds_on_device(images, 3)
    assert seconds is not None
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert len(outputs) == ort.WARM_UP + 3
    np.testing.assert_allclose(outputs[-1], blurred(images), atol=1e-6)
    with pytest.raises(ModelError, match="cannot denoise 24x16 at once"):
        engine.seconds_on_device(images[:, :1], 3)


def test_a_device_is_timed_on_images_of_either_kind(tmp_path: Path, write_model: WriteModel) -> None:
    engine = ort.OrtEngine(write_model(tmp_path / "m.onnx"))
    engine._device = "cpu"  # in place of a GPU
    assert len(engine.seconds_on_device(np.zeros((1, 16, 24, 3), np.uint8), 1) or ()) == 1


def test_nothing_is_noted_of_a_run_nor_told(tmp_path: Path, write_model: WriteModel) -> None:
    """ONNX Runtime 1.29 and later keep an identifier and a list of what happened, to be sent to its maker."""
    code = "import sys, numpy as np; from runtime import Denoiser; Denoiser(sys.argv[1]).denoise(np.zeros((8, 8, 3)))"
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))} | {"HOME": str(home)}
    command = [sys.executable, "-c", code, str(write_model(tmp_path / "m.onnx"))]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    assert list(home.rglob("*")) == []


def test_ctrl_c_while_onnxruntime_loads_is_no_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its library's initialization turns what Python raises in it into an ImportError."""
    (tmp_path / "onnxruntime.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(KeyboardInterrupt):
        ort.load_onnxruntime()


@pytest.mark.parametrize(("threads", "set_to"), [(1, 1), (3, 3), (None, 0)])
def test_the_threads_are_those_that_were_asked_for(
    tmp_path: Path, write_model: WriteModel, threads: int | None, set_to: int
) -> None:
    engine = ort.OrtEngine(write_model(tmp_path / "m.onnx"), threads)
    assert engine._session.get_session_options().intra_op_num_threads == set_to  # 0: as ONNX Runtime likes


def test_details_are_what_the_exporter_wrote(tmp_path: Path, write_model: WriteModel) -> None:
    assert ort.OrtEngine(write_model(tmp_path / "m.onnx")).details == {"format": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"marked": False}, "found none"),
        ({"details": "not JSON"}, "found none"),
        ({"details": "[]"}, "found none"),
        ({"channels": 4}, "found in nx4xhxw tensor"),
        ({"outputs": 2}, "tensor.float. and nx3xhxw"),
    ],
)
def test_another_network_is_refused(
    tmp_path: Path, write_model: WriteModel, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=f"is another network: .*{words}"):
        open_engine(write_model(tmp_path / "m.onnx", **options))


@pytest.mark.parametrize(("data", "words"), [(b"", "an empty file"), (b"hello" * 9, "cannot be loaded")])
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=words):
        open_engine(tmp_path / "m.onnx")
    assert capfd.readouterr().err == ""


def test_a_cut_model_is_refused(tmp_path: Path, write_model: WriteModel, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for length in range(1, len(whole), 17):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            open_engine(path)
    assert capfd.readouterr().err == ""


def test_what_is_no_model_file(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, words in (("missing.onnx", "no such file"), ("folder.onnx", "a folder"), ("m.pth", "ending in .onnx")):
        with pytest.raises(InputError, match=words):
            open_engine(tmp_path / name)
    with pytest.raises(InputError, match="threads: expected 1 to"):
        open_engine(tmp_path / "m.onnx", threads=0)


def test_a_failing_run_is_one_clear_error(tmp_path: Path, write_model: WriteModel) -> None:
    with (
        open_engine(write_model(tmp_path / "m.onnx", size=(64, 64))) as engine,
        pytest.raises(ModelError, match="cannot denoise 8x16 at once"),
    ):
        engine.run(np.zeros((1, 3, 16, 8), np.float32))


def test_a_closed_engine_says_so(tmp_path: Path, write_model: WriteModel) -> None:
    engine = ort.OrtEngine(write_model(tmp_path / "a.onnx"))
    engine.close()
    with pytest.raises(InputError, match=r"expected an open engine, found ONNX Runtime .* closed"):
        engine.run(np.zeros((1, 3, 8, 8), np.float32))


def test_a_missing_onnxruntime_names_the_command(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match="pip install"):
        open_engine(write_model(tmp_path / "m.onnx"))


def test_two_builds_of_onnxruntime_are_refused(
    tmp_path: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "_installed", lambda package: True)
    with pytest.raises(DependencyError, match="found both"):
        open_engine(write_model(tmp_path / "m.onnx"))
