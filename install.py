"""Make .venv and install this checkout with an extra into it: what the Makefile calls.

    python3 install.py cpu

Prints how far it is while pip works, because the CUDA builds of PyTorch take minutes to arrive.
"""

import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"


def main(extra: str) -> int:
    """Install `.[extra]`; returns an exit code, and prints pip's output only where it fails."""
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"error: expected Python 3.11 or later, found {found}: make PYTHON=python3.12 ...", file=sys.stderr)
        return 2
    python = VENV / "bin" / "python"
    if not python.exists():
        print("making .venv", flush=True)
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            print("error: expected Python's venv module to work: apt-get install python3-venv, say", file=sys.stderr)
            return 2
    command = [str(python), "-m", "pip", "install", "--editable", f".[{extra}]"]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        output: list[str] = []
        assert pip.stdout is not None
        reader = threading.Thread(target=lambda lines: output.extend(lines), args=(pip.stdout,))
        reader.start()
        begun = told = time.monotonic()
        while reader.is_alive():
            reader.join(0.2)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                doing = " ".join(output[-1].split()[:2]) if output else "starting"
                print(f"installing .[{extra}]  {told - begun:4.0f} s  {doing}", flush=True)
    if pip.returncode:
        sys.stderr.writelines(output[-30:])
        print(f"error: pip could not install .[{extra}]: its last lines stand above", file=sys.stderr)
    else:
        print(f"installed .[{extra}] into .venv in {time.monotonic() - begun:.0f} s", flush=True)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
