"""What this machine can run, what is missing, and the command that installs it.

    python runtime/doctor.py
    python runtime/doctor.py --plan sadnet.plan    # whether this machine runs it
    python runtime/doctor.py --json

It starts where nothing but Python is installed: no package reads its options or prints its table. Exit code 0: photos
can be denoised on this machine's CPU, which is tried, and every plan that is named can be run; 2: they cannot.
"""

from __future__ import annotations  # an older Python is to reach the line below that tells it so

import argparse
import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever Python the user has
    found = ".".join(map(str, sys.version_info[:3]))
    print(f"error: expected Python 3.11 or later, found {found}: python3.12 runtime/doctor.py", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where nothing is installed, nothing else tells Python of this checkout

from common.driver import driver_version, gpus  # noqa: E402 - found by the line above
from common.files import sha256  # noqa: E402
from common.host_memory import free_bytes  # noqa: E402
from common.machine import cpu_name  # noqa: E402
from common.probing import Answer, Answers, FaultError, Probe, ask, tell  # noqa: E402
from common.requirements import allowed, fits  # noqa: E402

ASSETS = ROOT / "assets"
LIMIT = 60.0
"""Seconds for a probe: PyTorch comes slowly from a cold disk."""
CUDA = 13000
"""What NVIDIA driver 580 takes: the packages of pyproject.toml, and the PTX of NVRTC 13.0."""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="What this machine can run, what is missing, and what installs it.")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--plan", nargs="+", default=[], metavar="FILE", help="say whether this machine runs these")
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # in the process of one probe
    options = parser.parse_args()
    plans = {f"plan {path}": path for path in options.plan}
    probes = PROBES | {name: Probe(partial(plan, Path(path)), after=IMPORTED) for name, path in plans.items()}
    if options.probe:
        tell(probes[options.probe])
    purposes = PURPOSES | {f"Run {path}": (name,) for name, path in plans.items()}
    command = [sys.executable, __file__, *(["--plan", *options.plan] if options.plan else []), "--probe"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a plan's name may hold what the terminal cannot show
    try:
        with Answers(probes, lambda name: ask([*command, name], probes[name], LIMIT)) as answers:
            unready = report(purposes, answers, as_json=options.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 2 if unready & {DENOISE, *purposes.keys() - PURPOSES.keys()} else 0


def report(purposes: Mapping[str, Sequence[str]], answers: Answers, *, as_json: bool) -> set[str]:
    """Print what was found, each purpose as soon as it is known. Returns the purposes that are not ready.

    The table tells each probe once, under the first purpose that wants it.
    """
    facts, described, shown = machine(), [], set[str]()
    if not as_json:
        memory = facts["free_memory_gb"] or "unknown"
        print(f"{facts['system']}, {facts['cpu']}, {facts['cores']} cores, GB of memory free: {memory}", flush=True)
    for purpose, names in purposes.items():
        faults = list(dict.fromkeys(fault for name in names for fault in answers.faults(name)))
        told = {name: answer for name in names if (answer := answers.answer(name))}
        lines = [{"name": name, **asdict(answer)} for name, answer in told.items()]
        described.append({"purpose": purpose, "ready": not faults, "faults": faults, "lines": lines})
        if not as_json:
            verdict = f"not ready: {', '.join(faults)}" if faults else "ready"
            print("\n" + " ".join(f"{purpose}: {verdict}".split()))
            for name in [name for name in told if name not in shown]:
                print(line(name, told[name]), flush=True)
            shown |= told.keys()
    if as_json:
        print(json.dumps({"machine": facts, "purposes": described}, indent=1))
    return {str(entry["purpose"]) for entry in described if entry["faults"]}


def line(name: str, answer: Answer) -> str:
    """Of the table, as wide as the terminal; what mends a fault stays in one piece, to be copied."""
    start = f"  {answer.status:7}  {'plan' if name.startswith('plan ') else name:20}  "
    below = " " * len(start)
    width = max(shutil.get_terminal_size().columns, 80)
    words = textwrap.fill(answer.found, width, initial_indent=start, subsequent_indent=below)
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        colour = {"ok": 32, "missing": 33, "broken": 31}[answer.status]
        words = words.replace(answer.status, f"\033[{colour}m{answer.status}\033[0m", 1)
    return f"{words}\n{below}-> {answer.todo}" if answer.todo else words


def machine() -> dict[str, str | float | None]:
    """What it is, and the GB of memory that are free for this process, None where it does not tell."""
    free = free_bytes()
    memory = None if free is None else round(free / 1e9, 1)
    system = f"{platform.system()} {platform.machine()}"
    return {"system": system, "cpu": cpu_name(), "cores": os.cpu_count(), "free_memory_gb": memory}


# What is looked for. Each function is a probe's `look`, called in a process of its own.


def python() -> Answer:
    """Which one, and a word where another has the packages."""
    todo, home = "", ROOT / ".venv"
    if Path(sys.prefix).resolve() != home.resolve():
        if home.exists():
            todo = "the packages that make has installed are in another: source .venv/bin/activate"
        elif sys.prefix == sys.base_prefix:
            todo = "python3 install.py cpu makes .venv and installs into it; then source .venv/bin/activate"
    return Answer("ok", f"{platform.python_version()}, {sys.executable}", todo)


def package(distribution: str, module: str | None = None) -> str:
    """Version of what PyPI calls `distribution`; where `module` is given, it is imported."""
    loaded = importlib.import_module(module) if module else None
    version = getattr(loaded, "__version__", None) or importlib.metadata.version(distribution)
    return check(str(version), allowed(distribution))


def onnxruntime() -> str:
    """Version and providers."""
    from runtime.engines.ort import load_onnxruntime

    library = load_onnxruntime()
    providers = [name for name in ("CUDA", "CPU") if f"{name}ExecutionProvider" in library.get_available_providers()]
    return f"{check(library.__version__, allowed('onnxruntime'))}, with {', '.join(providers)}"


def models() -> str:
    """Their names, once each file has the SHA-256 of its card."""
    cards = sorted(ASSETS.glob("*.json"))
    for card in cards:
        try:
            files = dict(json.loads(card.read_bytes())["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise FaultError("broken", f"{card}: expected a model card, found another or a damaged file") from error
        for name, digest in files.items():
            status, found = ("broken", "another") if (ASSETS / name).is_file() else ("missing", "none")
            if status == "missing" or sha256(ASSETS / name) != digest:
                raise FaultError(status, f"{ASSETS / name}: expected the file of {card.name}, found {found}")
    if not cards:
        raise FaultError("missing", f"{ASSETS}: expected models and their cards, found none")
    return ", ".join(card.stem for card in cards)


def trial() -> str:
    """A model denoises here: of the noise on a flat picture, less than half is left."""
    import numpy as np

    from runtime import Denoiser

    noisy = np.clip(np.random.default_rng(0).normal(0.5, 0.2, (64, 64, 3)), 0, 1)
    with Denoiser(ASSETS / "blind_color.onnx") as denoiser:
        began = time.perf_counter()
        clean = denoiser.denoise(noisy)
        seconds = time.perf_counter() - began
        if not clean.std() < noisy.std() / 2:
            raise FaultError("broken", f"{denoiser.engine.name} leaves {clean.std() / noisy.std():.0%} of the noise")
        return f"64x64 pixels in {seconds * 1e3:.0f} ms by {denoiser.engine.name}"


def onnxruntime_cuda() -> str:
    """What the engine of the bundled model says of itself, where that is CUDA."""
    from runtime.engines.ort import OrtEngine

    with OrtEngine(ASSETS / "blind_color.onnx") as engine:
        if not engine.name.endswith("CUDA"):
            raise FaultError("missing", f"the model runs on {engine.name}")
        return engine.name


def driver() -> str:
    version = driver_version()
    words = f"CUDA {version // 1000}.{version % 1000 // 10}"
    if version < CUDA:
        raise FaultError("broken", f"{words}, expected 13.0 or later, of the packages here and of our kernels' PTX")
    return words


def gpu() -> str:
    return "; ".join(f"{g.name}, compute capability {g.compute_capability}, {m / 2**30:.1f} GiB" for g, m in gpus())


def generation() -> str:
    """Plans and kernels are for Turing and later."""
    from plugins import nvrtc

    return f"Turing or later; our kernels are compiled for it as sm_{nvrtc.architecture(gpus()[0][0].number)}"


def tensorrt(backend: str, distribution: str) -> str:
    """Version of TensorRT or TensorRT-RTX."""
    from common.tensorrt_library import Backend, load_library

    return check(load_library(Backend(backend)).__version__, allowed(distribution))


def compiler() -> str:
    from plugins.nvrtc import load_nvrtc

    return f"13.0, CUDA's headers in {load_nvrtc()[1]}"


def plan(path: Path) -> str:
    """What this machine would run it by, and which sizes it takes."""
    from common.tensorrt_library import NAMES
    from runtime.engines.plan_file import open_plan

    file = open_plan(path)
    made = file.sidecar
    return f"{NAMES[made.backend]} {made.version}, {made.precision}, {file.describe()}, on {file.gpu.name}"


def pytorch() -> str:
    """Versions; one that does not fit the other fails as it is imported."""
    return f"{package('torch', 'torch')}, torchvision {package('torchvision', 'torchvision')}"


def pytorch_cuda() -> str:
    import torch

    torch.ones(1, device="cuda").add_(1).item()  # raises what is wrong, as a build without kernels for this GPU
    return f"{torch.cuda.get_device_name()}, built for CUDA {torch.version.cuda}"


def tool(*names: str, pattern: str, variable: str = "", versions: str = "") -> str:
    """Version of a program: of what the environment's `variable` names, else of the first of `names` on PATH."""
    names = tuple(shlex.split(os.environ.get(variable, ""))[:1]) or names
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        raise FaultError("missing", f"no {names[0]} on PATH")
    result = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", check=False)
    match = re.search(pattern, result.stdout)
    if result.returncode or not match:
        raise FaultError("broken", f"{program} --version tells no version: {result.stdout}{result.stderr}")
    return f"{check(match[1], versions)}, {program}"


def headers() -> str:
    """Version of TensorRT's headers, where plugins/tensorrt_v3/CMakeLists.txt looks for them."""
    root = os.environ.get("TENSORRT_ROOT")
    system = ("/usr/local/include", "/usr/include", f"/usr/include/{platform.machine()}-linux-gnu")
    for folder in map(Path, [*([f"{root}/include", root] if root else []), *system]):
        if (folder / "NvInferRuntime.h").is_file():
            words = (folder / "NvInferVersion.h").read_text(errors="replace")
            parts = [re.search(rf"#define +\w*_{part}\w* +(\d+)", words) for part in ("MAJOR", "MINOR")]
            return f"{check('.'.join(part[1] for part in parts if part), '>=10')}, {folder}"
    raise FaultError("missing", "no NvInferRuntime.h in $TENSORRT_ROOT or the system's folders")


def check(version: str, versions: str) -> str:
    """The version. Raises FaultError where `versions` do not hold it."""
    if not fits(version, versions):
        raise FaultError("broken", f"{version}, expected {versions}")
    return version


def from_pip(extra: str, distribution: str, module: str | None = None) -> Probe:
    """A package of an extra of pyproject.toml."""
    return Probe(partial(package, distribution, module), f"pip install -e '.[{extra}]'")


BASE = ("Python", "NumPy", "OpenCV", "Typer", "Rich")
IMPORTED = ("NumPy", "Typer", "Rich")
"""By modules of this project before they have done anything."""
CUDA_PROVIDER = (
    "pip uninstall onnxruntime, then pip install -e '.[gpu]'; put CUDA's and cuDNN's libraries where they are found"
)
TENSORRT = "pip install --extra-index-url https://pypi.nvidia.com -e '.[tensorrt]'"
PROBES = {
    "Python": Probe(python),
    "NumPy": from_pip("cpu", "numpy", "numpy"),
    "OpenCV": from_pip("cpu", "opencv-python-headless", "cv2"),
    "Typer": from_pip("cpu", "typer", "typer"),
    "Rich": from_pip("cpu", "rich", "rich.console"),
    "ONNX Runtime": Probe(onnxruntime, "pip install -e '.[cpu]'", IMPORTED),
    "bundled models": Probe(models, "git checkout -- assets"),
    "trial run": Probe(trial, after=(*IMPORTED, "ONNX Runtime", "bundled models")),
    "PyAV": from_pip("video", "av", "av"),
    "NVIDIA driver": Probe(
        driver, "install NVIDIA driver 580 or later: https://www.nvidia.com/drivers; start a container with --gpus all"
    ),
    "GPU": Probe(gpu, "see what nvidia-smi lists, and whether CUDA_VISIBLE_DEVICES hides it", ("NVIDIA driver",)),
    "ONNX Runtime on CUDA": Probe(onnxruntime_cuda, CUDA_PROVIDER, ("GPU", "trial run")),
    "GPU generation": Probe(generation, after=("GPU", *IMPORTED)),
    "cuda-bindings": from_pip("rtx", "cuda-bindings", "cuda.bindings.driver"),
    "cuda-core": from_pip("rtx", "cuda-core", "cuda.core"),
    "TensorRT-RTX": Probe(partial(tensorrt, "tensorrt-rtx", "tensorrt-rtx-cu13"), "pip install -e '.[rtx]'", IMPORTED),
    "TensorRT": Probe(partial(tensorrt, "tensorrt", "tensorrt-cu13"), TENSORRT, IMPORTED),
    "NVRTC": Probe(compiler, "pip install -e '.[kernels]'", IMPORTED),
    "ONNX": from_pip("export", "onnx", "onnx"),
    "ONNX Script": from_pip("export", "onnxscript"),
    "PyTorch": Probe(pytorch, "pip install -e '.[train]'"),
    "Lightning Fabric": from_pip("train", "lightning-fabric"),
    "safetensors": from_pip("train", "safetensors"),
    "scikit-image": from_pip("train", "scikit-image"),
    "TensorBoard": from_pip("train", "tensorboard"),
    "PyTorch on CUDA": Probe(pytorch_cuda, "pip install -e '.[train]'", ("GPU", "PyTorch")),
    "nvcc": Probe(partial(tool, "nvcc", variable="CUDACXX", pattern=r"release ([\d.]+)"), "install the CUDA toolkit"),
    "CMake": Probe(partial(tool, "cmake", pattern=r"version ([\d.]+)", versions=">=3.24"), "apt-get install cmake"),
    "C++ compiler": Probe(
        partial(tool, "c++", "g++", "clang++", variable="CXX", pattern=r" ([\d.]+)"), "apt-get install g++"
    ),
    "TensorRT headers": Probe(
        headers, "apt-get install libnvinfer-headers-dev, or set TENSORRT_ROOT to an unpacked TensorRT tar"
    ),
}

DENOISE = "Denoise photos on the CPU"
ON_GPU = ("NVIDIA driver", "GPU")
PLANS = (*BASE, *ON_GPU, "GPU generation", "cuda-bindings", "cuda-core")
WEIGHTS = (*BASE, "PyTorch", "safetensors")
TRAIN = (*WEIGHTS, "Lightning Fabric", "scikit-image", "TensorBoard")
PURPOSES: dict[str, tuple[str, ...]] = {
    DENOISE: (*BASE, "ONNX Runtime", "bundled models", "trial run"),
    "Denoise videos on the CPU": (*BASE, "ONNX Runtime", "bundled models", "trial run", "PyAV"),
    "Denoise on a GPU by ONNX Runtime": (*BASE, *ON_GPU, "ONNX Runtime on CUDA"),
    "Denoise on a GPU by PyTorch": (*WEIGHTS, *ON_GPU, "GPU generation", "cuda-bindings", "NVRTC", "PyTorch on CUDA"),
    "Run TensorRT-RTX plans": (*PLANS, "TensorRT-RTX"),
    "Run TensorRT plans": (*PLANS, "TensorRT"),
    "Build TensorRT-RTX plans": (*BASE, "TensorRT-RTX", "ONNX"),
    "Build TensorRT plans": (*BASE, *ON_GPU, "GPU generation", "cuda-bindings", "NVRTC", "TensorRT", "ONNX"),
    "Train": TRAIN,
    "Train on a GPU": (*TRAIN, *ON_GPU, "PyTorch on CUDA"),
    "Export to ONNX": (*WEIGHTS, "ONNX", "ONNX Script", "ONNX Runtime"),
    "Build the C++ plugin": ("nvcc", "CMake", "C++ compiler", "TensorRT headers"),
}

if __name__ == "__main__":
    sys.exit(main())
