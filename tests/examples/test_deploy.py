"""docs/deploy.md: its links lead somewhere, and its commands that need no GPU run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.examples.conftest import SOURCE

ROOT = SOURCE.parents[1]
PAGE = ROOT / "docs" / "deploy.md"
TEXT = PAGE.read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


def run(command: str, folder: Path) -> str:
    """What a command that begins with python prints; run in a folder like a checkout."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": "."}
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def checkout(folder: Path) -> Path:
    for name in ("assets", "common", "export", "plugins", "runtime"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_links_and_files_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert path.startswith("https://") or (PAGE.parent / path).exists(), target
        assert not anchor or f"\n## {anchor.replace('-', ' ').capitalize()}\n" in TEXT, target
    for path in re.findall(r"`((?:common|examples|export|plugins|runtime|tests)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"^\| `(\w+\.(?:h|cpp))`", TEXT, re.MULTILINE):
        assert (SOURCE / name).exists(), name


def test_the_tensorrt_rtx_plan_is_built_as_written_and_of_the_size_that_the_table_has(tmp_path: Path) -> None:
    (command,) = [c for c in COMMANDS if "--backend tensorrt-rtx" in c]
    printed = run(command, checkout(tmp_path))
    assert (tmp_path / "photo-rtx.plan.json").exists()
    version, memory = re.findall(r"TensorRT-RTX ([\d.]+),.*activation memory (\d+ MB)", printed)[0]
    if f"| done: TensorRT-RTX {version} |" in TEXT:
        assert f"| `--size 480x320` | {memory} |" in TEXT


def test_the_functions_body_is_taken_out_as_written(tmp_path: Path) -> None:
    import onnx

    (command,) = [c for c in COMMANDS if "model.functions" in c]
    (tmp_path / "fp16.onnx").symlink_to(ROOT / "assets" / "blind_color.onnx")
    run(command, tmp_path)
    before, after = (onnx.load(tmp_path / name) for name in ("fp16.onnx", "node.onnx"))
    assert len(before.functions) == 1
    assert not after.functions
    assert after.graph == before.graph


def test_the_photo_is_written_as_the_program_reads_it(tmp_path: Path) -> None:
    (command,) = [c for c in COMMANDS if "photo.ppm" in c and c.startswith("python")]
    run(command, checkout(tmp_path))
    assert (tmp_path / "photo.ppm").read_bytes().split(maxsplit=4)[:4] == [b"P6", b"480", b"320", b"255"]
