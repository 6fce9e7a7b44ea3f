"""Make .venv and install this checkout with an extra into it: what the Makefile calls.

    python3 install.py cpu

Prints how far it is while pip works, because the CUDA builds of PyTorch take minutes to arrive. A .venv that an
interrupted run left half made, or whose Python is gone, is made again.
"""

import os
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STEPS = ("Collecting", "Downloading", "Building", "Installing", "Using")
"""How the lines of pip's output that tell of progress begin."""


def main(extra: str) -> int:
    """Install `.[extra]`; returns an exit code, and prints pip's output only where it fails."""
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"error: expected Python 3.11 or later, found {found}: make PYTHON=python3.12 ...", file=sys.stderr)
        return 2
    if not has_pip():
        print("making .venv", flush=True)
        try:
            venv.create(VENV, with_pip=True, clear=True, symlinks=os.name != "nt")
        except subprocess.CalledProcessError:
            print(
                "error: expected Python's venv module with pip, found none: apt-get install python3-venv",
                file=sys.stderr,
            )
            return 2
        except OSError as error:
            print(f"error: cannot make {VENV}: {error.strerror or error}", file=sys.stderr)
            return 2
    command = [str(PYTHON), "-m", "pip", "install", "--editable", f".[{extra}]"]
    with subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        output: list[str] = []
        assert pip.stdout is not None
        reader = threading.Thread(target=output.extend, args=(pip.stdout,), daemon=True)
        reader.start()
        begun = told = time.monotonic()
        while reader.is_alive():
            reader.join(0.2)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                steps = [line for line in output if line.startswith(STEPS)]
                doing = " ".join(steps[-1].split()[:2]) if steps else "starting"
                print(f"installing .[{extra}]  {told - begun:4.0f} s  {doing}", flush=True)
    if pip.returncode:
        sys.stderr.writelines(output[-30:])
        print(f"error: pip could not install .[{extra}]: its last lines stand above", file=sys.stderr)
    else:
        print(f"installed .[{extra}] into .venv in {time.monotonic() - begun:.0f} s", flush=True)
    return pip.returncode


def has_pip() -> bool:
    """Whether .venv is there and works."""
    try:
        subprocess.run([str(PYTHON), "-m", "pip", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 install.py EXTRA (cpu or dev, say)")
    try:
        sys.exit(main(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted: run it again", file=sys.stderr)
        sys.exit(130)
