"""The tables: measured once for the same files, counted, honest about what is missing; and the committed page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common import cli
from common.files import sha256
from common.images import read_picture
from common.metrics import psnr, ssim
from runtime.denoiser import Denoiser
from train import cells
from train.evaluate import Protocol, evaluate
from train.noise import protocol_noise
from train.results_page import _WHO, page
from train.tables import _costs, app

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
KODAK, CC = 24, 15
"""Images of the two small sets; a set is measured only where it is whole."""

Run = Callable[..., int]


def small(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (16, 16), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Kodak24 and CC, 16x16 pixels an image."""
    folder = tmp_path / "data"
    for name in ("Kodak24", "CC"):
        (folder / name).mkdir(parents=True)
    for i in range(KODAK):
        cv2.imwrite(str(folder / f"Kodak24/kodim{i + 1:02d}.png"), small(i))
    for i in range(CC):
        for kind in ("real", "mean"):
            cv2.imwrite(str(folder / f"CC/d800_iso{100 * (i + 1)}_1_{kind}.png"), small(i + 100 * (kind == "real")))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The bundled ones, to be changed."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("blind_color", "real_color"):
        for kind in ("onnx", "json"):
            (folder / f"{name}.{kind}").symlink_to(ROOT / "assets" / f"{name}.{kind}")
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "results").mkdir(parents=True)
    shutil.copy(RESULTS / "published.json", folder / "results")
    return folder


@pytest.fixture
def tables(data: Path, models: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """tables(*options): the exit code of `python train/tables.py`, with two kinds of white noise instead of eight."""
    monkeypatch.setattr(cells, "SIGMAS", {Protocol.CLIP8: (50,), Protocol.FLOAT: (30,)})

    def run(*more: object) -> int:
        options = ("--data", data, "--models", models, "--docs", docs, "--threads", 1, *more)
        with pytest.raises(SystemExit) as done:
            cli.run(app, argv=[str(option) for option in options])
        assert isinstance(done.value.code, int)
        return done.value.code

    return run


def measured(out: str) -> list[str]:
    """What a run told that it measured."""
    return [line.partition(":")[0] for line in out.splitlines() if not line.startswith("wrote")]


EVERYTHING = [
    "blind_color cc pairs",
    "blind_color kodak24 sigma 50 clip8",
    "blind_color kodak24 sigma 30 float",
    "real_color cc pairs",
]


def test_figures_are_the_protocols_and_stand_in_the_page(
    tables: Run, data: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables() == 0
    assert measured(capsys.readouterr().out) == EVERYTHING
    record = json.loads((docs / "results" / "tables.json").read_text())
    text = (docs / "results.md").read_text()
    scores = []
    with Denoiser(ROOT / "assets" / "blind_color.onnx", threads=1) as denoiser:
        for i, path in enumerate(sorted((data / "Kodak24").iterdir())):
            clean = read_picture(path).pixels.astype(np.float32) / np.float32(255)
            output = denoiser.denoise(protocol_noise(clean, 50, i, clip8=True))
            scores.append((psnr(output, clean), ssim(output, clean)))
    (cell,) = (c for c in record["cells"] if c.get("sigma") == 50)
    assert (cell["psnr"], cell["ssim"]) == pytest.approx(np.mean(scores, axis=0), abs=1e-3)
    assert f"| `blind_color` | **this project** | clip8 | - | {cell['psnr']:.2f} / {cell['ssim']:.3f} |" in text
    kodak = text.split("### Kodak24, colour")[1].split("##")[0]
    assert "measured on the same files" not in kodak  # those are of the real Kodak24
    assert "the paper [1]" in kodak
    assert f"| `blind_color` less SADNet [1] |  | clip8 | - | {cell['psnr'] - 29.62:+.2f} | - |" in text
    for pairs in (c for c in record["cells"] if c["protocol"] == "pairs"):
        assert f"| `{pairs['model']}` | **this project** | {pairs['psnr']:.2f} / {pairs['ssim']:.4f} |" in text
        assert f"| noisy (15 images) | **this project** | {pairs['noisy_psnr']:.2f} /" in text
    for name in ("blind_color", "real_color"):
        assert f"`{sha256(ROOT / 'assets' / f'{name}.onnx')}`" in text
    assert record["missing"] == 0
    assert "500x500 crops" not in text
    assert "by that protocol.\n" in text


def test_what_is_not_measured_says_why(tables: Run, data: Path, docs: Path) -> None:
    (data / "CC" / "d800_iso100_1_real.png").unlink()
    assert tables("--minutes", 0) == 0
    text = (docs / "results.md").read_text()
    for row in (
        "| this project | not measured: no gray model is bundled yet |",
        "| this project | not measured: its clean images stay on its server",
        "| this project | not measured: not in the folder; its page is http://snam.ml",
        "| this project | not measured: expected a noisy image for",
    ):
        assert row in text
    assert "**2 of our figures are not measured yet**" in text
    assert "by that protocol, or not measured yet.\n" in text
    assert "| this project | not measured yet: the same command goes on with it |" in text
    assert text.count("| not measured |") == 6


def test_a_second_run_measures_nothing(tables: Run, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables() == 0
    before = [path.read_bytes() for path in (docs / "results.md", docs / "results" / "tables.json")]
    capsys.readouterr()
    assert tables() == 0
    assert measured(capsys.readouterr().out) == []
    assert [path.read_bytes() for path in (docs / "results.md", docs / "results" / "tables.json")] == before
    assert tables("--force") == 0
    assert measured(capsys.readouterr().out) == EVERYTHING


def test_changed_files_are_measured_again(
    tables: Run, data: Path, models: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables() == 0
    capsys.readouterr()
    cv2.imwrite(str(data / "Kodak24" / "kodim24.png"), small(1000))
    assert tables() == 0
    assert measured(capsys.readouterr().out) == EVERYTHING[1:3]
    (models / "real_color.onnx").unlink()
    shutil.copy(models / "blind_color.onnx", models / "real_color.onnx")
    assert tables() == 0
    assert measured(capsys.readouterr().out) == []  # the same file under another name
    record = json.loads((docs / "results" / "tables.json").read_text())
    assert [c["model"] for c in record["cells"]] == ["blind_color"] * 5 + ["real_color"]
    assert len({c["psnr"] for c in record["cells"] if c["set"] == "cc"}) == 1


def kept(docs: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((docs / "results" / "tables.json").read_text())["cells"]
    return cells


def test_figures_stay_where_the_folder_has_other_sets(
    tables: Run, data: Path, docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables() == 0
    page_before, cells_before = (docs / "results.md").read_text(), kept(docs)
    other = tmp_path / "other"
    other.mkdir()
    (data / "Kodak24").rename(other / "Kodak24")
    assert tables() == 0
    assert kept(docs) == cells_before
    assert (docs / "results.md").read_text() == page_before
    assert tables("--data", other) == 0
    assert kept(docs) == cells_before
    assert (docs / "results.md").read_text() == page_before
    assert measured(capsys.readouterr().out) == EVERYTHING


def test_figures_of_another_edition_stay_beside_the_new_ones(
    tables: Run, data: Path, models: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables() == 0
    page_before, cells_before = (docs / "results.md").read_text(), kept(docs)
    image = data / "Kodak24" / "kodim24.png"
    pixels = image.read_bytes()
    cv2.imwrite(str(image), small(1000))
    assert tables("--minutes", 0) == 0
    assert kept(docs) == cells_before
    assert "**2 of our figures are not measured yet**" in (docs / "results.md").read_text()
    assert tables() == 0
    text, both = (docs / "results.md").read_text(), kept(docs)
    assert [cell for cell in both if cell in cells_before] == cells_before
    (new,) = (cell for cell in both if cell not in cells_before and cell["sigma"] == 50)
    rows = [line for line in text.splitlines() if line.startswith("| `blind_color` | **this project** | clip8 |")]
    assert [f"{new['psnr']:.2f} / {new['ssim']:.3f}" in row for row in rows] == [True]
    image.write_bytes(pixels)
    assert tables("--force", "--minutes", 0) == 0
    assert kept(docs) == both
    assert (docs / "results.md").read_text() == page_before
    for kind in ("onnx", "json"):
        (models / f"blind_color.{kind}").unlink()
    assert tables() == 0
    assert kept(docs) == [cell for cell in both if cell["model"] == "real_color"]


def test_an_interrupted_run_goes_on(
    tables: Run, docs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(denoiser: Denoiser, **job: Any) -> dict[str, Any]:
        if job["protocol"] is Protocol.FLOAT:
            raise KeyboardInterrupt
        return evaluate(denoiser, **job)

    monkeypatch.setattr(cells, "evaluate", stopped)
    assert tables() == 130
    assert measured(capsys.readouterr().out) == EVERYTHING[:2]
    assert "**2 of our figures are not measured yet**" in (docs / "results.md").read_text()
    monkeypatch.setattr(cells, "evaluate", evaluate)
    assert tables() == 0
    assert measured(capsys.readouterr().out) == EVERYTHING[2:]


def test_bad_input_is_one_line_and_writes_nothing(
    tables: Run, data: Path, models: Path, docs: Path, one_error: Callable[[], str]
) -> None:
    photos = data / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), small(0))
    empty = data / "empty"
    empty.mkdir()
    for more, expected in (
        (["--data", data / "none"], "expected a folder of images, found nothing"),
        (["--data", photos], "expected whole test sets"),
        (["--data", empty], "expected images"),
        (["--models", empty], "expected bundled models"),
        (["--docs", empty], "expected a JSON file"),
    ):
        assert tables(*more) == 2
        assert expected in one_error()
    (models / "real_color.json").unlink()
    (models / "real_color.json").write_text('{"noise": "any"}')
    assert tables() == 2
    assert "expected a model card" in one_error()
    assert sorted(path.name for path in docs.rglob("*")) == ["published.json", "results"]
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("tables.json", {"cells": None}, '"cells"'),
        ("tables.json", {"cells": {"a": 1}}, '"cells"'),
        ("tables.json", {"cells": [{"model": "blind_color"}]}, '"cells"'),
        ("tables.json", {"sets": [1]}, '"sets"'),
        ("published.json", {"ablation": {}}, "'rows'"),
        ("published.json", {"white": []}, "expected figures"),
        ("published.json", {"cost": None}, "expected figures"),
        ("benchmark_cpu.json", {"rows": [{"size": "480x320", "median_ms": 1}]}, "'engine'"),
        ("benchmark_cpu.json", {"rows": 5}, "expected figures"),
        ("ablation.json", {"rows": []}, "'set'"),
        ("ablation.json", {"set": "kodak24", "set_sha256": ""}, "'sigma'"),
    ],
)
def test_odd_figures_are_one_line_and_change_nothing(
    tables: Run, docs: Path, one_error: Callable[[], str], name: str, change: dict[str, Any], expected: str
) -> None:
    path = docs / "results" / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | change))
    before = {path: path.read_bytes() for path in docs.rglob("*.*")}
    assert tables("--minutes", 0) == 2
    error = one_error()
    assert name in error
    assert expected in error
    assert {path: path.read_bytes() for path in docs.rglob("*.*")} == before


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def test_committed_page_is_that_of_the_committed_figures() -> None:
    given = map(committed, ("tables.json", "published.json", "benchmark_cpu.json", "ablation.json"))
    text = page(*given)
    assert (ROOT / "docs" / "results.md").read_text() == text


def test_figures_of_table_1_that_are_of_other_files_are_not_shown() -> None:
    measured, published, times, ablation = map(
        committed, ("tables.json", "published.json", "benchmark_cpu.json", "ablation.json")
    )
    said = "Not measured on these files"
    assert said not in page(measured, published, times, ablation)
    assert said in page(measured, published, times, ablation | {"set_sha256": "another"})


def test_committed_figures_are_of_the_bundled_models() -> None:
    """Where not: make tables DATA=folder."""
    record = committed("tables.json")
    bundled = {path.stem: sha256(path) for path in (ROOT / "assets").glob("*.onnx")}
    assert {model["name"]: model["sha256"] for model in record["models"]} == bundled
    assert {cell["model_sha256"] for cell in record["cells"]} <= set(bundled.values())


def test_committed_costs_are_counted() -> None:
    assert committed("tables.json")["costs"] == _costs(committed("published.json")["ablation"]["rows"])


def test_every_published_figure_has_a_source() -> None:
    published = committed("published.json")
    assert list(published["sources"]) == [who for who in _WHO if who != "ours"]
    for number, words in enumerate([*_WHO.values()][:-1], 1):
        assert f"[{number}]" in words
    for row in [*published["white"], *published["real"], published["ablation"], published["cost"]]:
        assert row["source"] in published["sources"]
