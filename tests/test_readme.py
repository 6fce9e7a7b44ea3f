"""What the README says is so: its commands run as written, its figures are the model card's and the result files'."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
LINES = [
    tuple(part.strip() for part in line.partition("#")[::2])
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [command for command, _ in LINES]
ON_A_GPU = {command for command, comment in LINES if comment.startswith("on a GPU")}
"""Without one they are to say so in one line."""
PYTHON = [command for command in COMMANDS if command.startswith("python ")]
SHORT = ("run.threads=1", "data.crop=32", "data.batch=2", "run.validation_crop=32", "run.log_every=1")
"""Training is cut to two steps; everything else runs to the letter."""
MADE = (
    *("photo_denoised.jpg", "clean/a.png", "clean.jpg", "runs/release/weights.safetensors", "sadnet.onnx"),
    *("plans/small.plan", "plans/small.plan.json"),
)


def test_every_command_is_known_to_this_test() -> None:
    assert set(COMMANDS) - set(PYTHON) == {
        "make demo",
        "make test",
        "make dev",
        "make plugin",
        "make tables DATA=testsets",
        "pip install -e '.[rtx]'",
        "pip install -e '.[train,kernels]'",
        "source .venv/bin/activate",
    }
    assert len(PYTHON) >= 8


def test_make_targets_exist() -> None:
    for target in ("demo", "test", "dev", "plugin", "tables"):
        subprocess.run(["make", "--dry-run", target, "DATA=testsets"], cwd=ROOT, check=True, capture_output=True)


def test_commands_run_as_written(tmp_path: Path) -> None:
    """One after the other in a folder like a checkout, with two photos in it."""
    for name in ("assets", "common", "export", "plugins", "runtime", "train", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in ("photos", "test_photos"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for name in ("photos/a.png", "photos/b.png", "photos/c.png", "test_photos/d.png", "photo.jpg", "test.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (48, 56, 3), np.uint8))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for command in PYTHON:
        script, *arguments = shlex.split(command)[1:]
        if script == "train/run.py":
            steps = {"--config": 2, "--resume": 4, "--decay": 2}[arguments[0]]
            arguments = [*_without(arguments, "--minutes", "--steps"), "--steps", str(steps)]
            arguments += [f for value in SHORT for f in ("--set", value)]
        result = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if command in ON_A_GPU and result.returncode == 2:
            assert result.stderr.startswith("error: "), result.stderr
            assert "NVIDIA" in result.stderr
            assert result.stderr.count("\n") == 1
        else:
            assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    for made in MADE:
        assert (tmp_path / made).exists(), made


@pytest.mark.parametrize(
    ("model", "called", "count"), [("blind_color", "this model", 10), ("blind_gray", "`blind_gray`", 5)]
)
def test_quality_tables_are_the_model_cards(model: str, called: str, count: int) -> None:
    scores = json.loads((ROOT / "assets" / f"{model}.json").read_text())["scores"]
    assert len(scores) == count
    for score in scores:
        row = next(line for line in README.splitlines() if line.startswith(f"| {score['set']} | {called}"))
        assert f"{score['psnr']:.2f} / {score['ssim']:.3f}" in row


def test_real_table_is_the_model_cards() -> None:
    score, clean = json.loads((ROOT / "assets" / "real_color.json").read_text())["scores"]
    for name, prefix in (("noisy", "noisy_"), ("`real_color`", "")):
        figures = f"{score[f'{prefix}psnr']:.2f} / {score[f'{prefix}ssim']:.3f}"
        assert f"| {score['set']} | {name} | {figures} |" in README
    assert (clean["set"], clean["sigma"]) == ("Kodak24", 0)
    assert f"at {clean['psnr']:.1f} dB (Kodak24" in README


def test_benchmark_table_is_the_result_files() -> None:
    result = json.loads((ROOT / "docs" / "results" / "benchmark_cpu.json").read_text())
    assert result["cpu"] in README
    for row in result["rows"]:
        assert f"| {row['median_ms']:.0f} |" in README


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def _without(arguments: list[str], *options: str) -> list[str]:
    out, skip = [], False
    for argument in arguments:
        if skip or argument in options:
            skip = not skip
        else:
            out.append(argument)
    return out


@pytest.mark.parametrize("script", sorted({shlex.split(c)[1] for c in PYTHON}))
def test_help_tells_every_option(script: str) -> None:
    result = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.strip().startswith("--"):
            below = "" if following.strip().startswith("--") else following  # where the option is long
            assert len((line + below).split()) >= 3, f"{script}: {line.strip()} says nothing of itself"
