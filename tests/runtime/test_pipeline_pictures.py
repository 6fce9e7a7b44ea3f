"""What becomes of a picture on its way through the pipeline: depth, quality, gray, alpha, sizes, kinds of files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DependencyError, InputError
from common.images import Picture, encode_picture, read_picture, write_picture
from runtime import pipeline
from runtime.denoiser import Denoiser
from runtime.engines.base import Io
from runtime.jobs import Job
from runtime.pipeline import Outcome, Settings, denoise_files
from tests.runtime.test_pipeline import Negative, photo


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_gray_models_take_pictures_of_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    """As `infer.py` advises; WebP has no others."""
    gray = np.random.default_rng(0).integers(60, 190, (24, 40), np.uint8)
    job = Job(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    write_picture(job.source, Picture(np.repeat(gray[..., None], 3, axis=2)), overwrite=False, quality=100)
    engine = Negative()
    engine.channels = 1
    assert denoise_files(Denoiser(engine), [job], Settings(quality=100)).faults == []
    source, target = (read_picture(path) for path in (job.source, job.target))
    assert target.gray
    difference = target.pixels.reshape(24, 40, -1)[..., 0] - (255.0 - source.pixels[..., 0])
    assert np.abs(difference).max() <= (2 if suffix == ".jpg" else 0)
    colours = photo(tmp_path / f"c{suffix}")
    fault = denoise_files(Denoiser(engine), [Job(colours, tmp_path / f"d{suffix}")]).faults[0]
    assert "expected a gray picture" in str(fault)


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_depth_of_8(tmp_path: Path, io: Io) -> None:
    source = photo(tmp_path / "a.png", dtype=np.uint16)
    jobs = [Job(source, tmp_path / "out" / f"a{suffix}") for suffix in (".png", ".tif", ".jpg", ".webp", ".bmp")]
    summary = denoise_files(Denoiser(Negative(io=io)), jobs, Settings(depth=8))
    assert (summary.done, summary.faults) == (5, [])
    expected = 255 - read_picture(source).pixels / 257
    for job in jobs[:2]:
        pixels = read_picture(job.target).pixels
        assert pixels.dtype == np.uint8
        assert np.abs(pixels - expected).max() <= 0.502  # rounded, not cut off
    assert denoise_files(Denoiser(Negative()), jobs[:1], Settings(overwrite=True)).done == 1
    assert read_picture(jobs[0].target).pixels.dtype == np.uint16


def test_quality_strength_alpha_and_notes(tmp_path: Path) -> None:
    pixels, alpha = np.full((16, 16, 3), 200, np.uint8), np.arange(256, dtype=np.uint8).reshape(16, 16)
    exif = b"MM\0*\0\0\0\x08\0\0\0\0\0\0"
    write_picture(tmp_path / "a.png", Picture(pixels, alpha, {"EXIF": exif}), overwrite=False)
    job = Job(tmp_path / "a.png", tmp_path / "a.bmp")
    outcomes: list[Outcome] = []
    denoise_files(Denoiser(Negative()), [job], Settings(strength=0.5), report=outcomes.append)
    assert outcomes[0].notes == (f"{job.target} does not keep the metadata of {job.source} (EXIF)",)
    result = read_picture(job.target)
    np.testing.assert_array_equal(result.alpha, alpha)
    assert set(np.unique(result.pixels)) <= {127, 128}
    noisy = photo(tmp_path / "noisy.png", size=(64, 64))
    sizes = []
    for quality in (30, 95):
        job = Job(noisy, tmp_path / f"{quality}.jpg")
        denoise_files(Denoiser(Negative()), [job], Settings(quality=quality))
        sizes.append(job.target.stat().st_size)
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("options", [{"strength": 2}, {"quality": 0}, {"quality": 101}, {"depth": 16}])
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        Settings(**options)


def test_videos_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def denoise_video(denoiser: Denoiser, source: Path, target: Path, **options: Any) -> list[str]:
        report = options.pop("report")
        calls.append((denoiser, source.name, options))
        if source.name == "b.mp4":
            raise DependencyError("expected the package av, found none: pip install -e '.[video]'")
        if source.name == "d.mp4":
            raise KeyboardInterrupt(f"the first 3 frames are kept in {target}.partial")
        report(1, None)
        report(1, 4)
        report(5, 4)  # the number of frames may be a guess
        return ["d does not keep the captions"]

    monkeypatch.setattr(pipeline, "denoise_video", denoise_video)
    denoiser = Denoiser(Negative())
    names = ("a.png", "a.mp4", "b.mp4", "c.png", "d.mp4", "e.png")
    for name in names:
        if name.endswith(".png"):
            photo(tmp_path / name)
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in names]
    outcomes: list[Outcome] = []
    counts: list[float] = []
    settings = Settings(0.5, quality=80, overwrite=True)
    summary = denoise_files(denoiser, jobs, settings, report=outcomes.append, progress=counts.append)
    options = {"strength": 0.5, "quality": 80, "overwrite": True}
    assert calls == [(denoiser, name, options) for name in ("a.mp4", "b.mp4", "d.mp4")]
    assert [bool(outcome.fault) for outcome in outcomes] == [False, False, True, False]
    assert outcomes[1].notes == ("d does not keep the captions",)
    assert f"{tmp_path}/b.mp4: expected the package av" in str(outcomes[2].fault)
    assert counts == sorted(counts)
    assert 1.25 in counts
    assert summary.interrupted == f"the first 3 frames are kept in {tmp_path}/out/d.mp4.partial"


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_tiny_and_narrow_pictures(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    job = Job(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    job.source.write_bytes(encode_picture(Picture(np.full((*size, 3), 40, np.uint8)), suffix)[0])
    assert denoise_files(Denoiser(Negative()), [job]).done == 1
    result = read_picture(job.target).pixels
    assert result.shape == (*size, 3)
    assert np.abs(result.astype(int) - 215).max() <= 3
