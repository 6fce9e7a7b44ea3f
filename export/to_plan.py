"""Build a TensorRT-RTX or TensorRT plan of an exported ONNX file, with a sidecar that says what runs it.

    python export/to_plan.py assets/blind_color.onnx --backend tensorrt-rtx --size 480x320
    python export/to_plan.py assets/blind_color.onnx --backend tensorrt-rtx --min 64x64 --opt 1280x720 --max 1920x1080
    python export/to_plan.py assets/blind_color.onnx --backend tensorrt --size 1920x1080

TensorRT-RTX plans are built without a GPU, for all RTX cards from Ampere on; `--compute-capability 7.5` makes one for
Turing. TensorRT plans are built on the GPU that runs them. Sizes are rounded up to multiples of 8, as the runtime pads
images. Whatever types the file has, the plan computes in those of `--precision`, with the deformable convolution's
sampling and the last addition in fp32; convolutions and sampling are checked for it as the library has parsed them.
"""

import time
from pathlib import Path
from typing import Annotated

import typer

from common import cli
from common.errors import InputError
from common.files import sha256
from common.padding import MULTIPLE
from common.plan_sidecar import MOST, Sidecar, plan_files, sidecar_path
from common.tensorrt_library import NAMES, Backend

with cli.needs("dev", __name__):
    from export.plan_build import Sizes, Target, build
    from export.plan_graph import bytes_at_edges, load_network, set_size
    from export.plan_rtx import RtxTarget
    from export.plan_tensorrt import TensorRTTarget
    from export.plan_types import Precision, retype

SHORT = {Backend.TENSORRT: "trt", Backend.TENSORRT_RTX: "rtx"}

app = cli.application("Build a TensorRT-RTX or TensorRT plan of an ONNX file that export/to_onnx.py wrote.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file")],
    backend: Annotated[Backend, typer.Option(help="who runs the plan")],
    precision: Annotated[Precision, typer.Option(help="weights and activations")] = Precision.FP16,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT: the only size that the plan takes")] = None,
    least: Annotated[str | None, typer.Option("--min", help="instead of --size: the smallest size")] = None,
    usual: Annotated[str | None, typer.Option("--opt", help="the size that the plan is tuned for")] = None,
    most: Annotated[str | None, typer.Option("--max", help="the largest size")] = None,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="tensorrt-rtx: one or more such as 8.9, or current; default 8.0 and later")
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(help="tensorrt: library of the C++ plugin, instead of the ahead-of-time one")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="tensorrt: file of kernels' times; default tensorrt.timing beside the plan")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="the plan; by default in this folder, named after all of the above")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing plan and sidecar")] = False,
) -> None:
    """Write the plan and its sidecar, once all its layers are shown to have the types that were asked for."""
    sizes = plan_sizes(size, least, usual, most)
    parts = (model.stem, SHORT[backend], precision, _label(sizes), *(compute_capability or ()))
    path = output or Path(f"{'-'.join(parts)}.plan")
    if path.suffix != ".plan":
        raise InputError(f"--output: expected a name ending in .plan, found {path}")
    target = _target(backend, compute_capability or [], plugin, timing_cache, path)
    write(model, path, target, precision, sizes, overwrite=overwrite)


def write(model: Path, path: Path, target: Target, precision: Precision, sizes: Sizes, *, overwrite: bool) -> None:
    """Build a plan of the ONNX file `model` and write it to `path`, the sidecar beside it.

    Raises InputError, ModelError, DependencyError or OutputError; then nothing is written.
    """
    network, details = load_network(model)
    with plan_files(path, overwrite=overwrite) as files:
        retype(network, precision)
        bytes_at_edges(network)
        width, height = sizes.most
        set_size(network, *((height, width) if sizes.fixed else ("height", "width")))
        plan = build(target, network, precision, sizes)
        temporary, sidecar_file = files
        temporary.write_bytes(plan.data)
        sidecar = Sidecar(
            plan_sha256=sha256(temporary),
            backend=target.backend,
            version=plan.version,
            precision=str(precision),
            inputs=plan.inputs,
            outputs=plan.outputs,
            **target.facts(),
            activation_bytes=plan.activation_bytes,
            onnx={"file": model.name, "sha256": sha256(model)},
            model=details,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        sidecar_file.write_text(sidecar.dumps())
    memory = "not told" if plan.activation_bytes is None else f"{plan.activation_bytes / 1e6:.0f} MB"
    print(
        f"{path} and {sidecar_path(path).name}: {path.stat().st_size / 1e6:.1f} MB, {NAMES[target.backend]} "
        f"{plan.version}, {precision}, {_label(sizes)}, activation memory {memory}, compute capability "
        f"{', '.join(sidecar.compute_capabilities)}"
    )


def plan_sizes(size: str | None, least: str | None, usual: str | None, most: str | None) -> Sizes:
    """What the options ask for, rounded up to multiples of 8. Raises InputError."""
    given = {"--min": least, "--opt": usual, "--max": most}
    if (size is None) == (None in given.values()) or (size is not None and any(given.values())):
        raise InputError("expected --size, or all of --min, --opt and --max")
    if size is not None:
        fixed = _padded("--size", size)
        return Sizes(fixed, fixed, fixed)
    sizes = Sizes(*(_padded(option, text or "") for option, text in given.items()))
    for axis in range(2):
        if not sizes.least[axis] <= sizes.usual[axis] <= sizes.most[axis]:
            raise InputError(f"expected --min, --opt and --max in ascending order, found {least}, {usual} and {most}")
    return sizes


def _padded(option: str, text: str) -> tuple[int, int]:
    width, height = (-(-side // MULTIPLE) * MULTIPLE for side in cli.parse_size(option, text))
    if max(width, height) > MOST:
        raise InputError(f"{option}: expected at most {MOST} pixels a side, found {text!r}")
    return width, height


def _label(sizes: Sizes) -> str:
    least, most = (f"{width}x{height}" for width, height in (sizes.least, sizes.most))
    return most if sizes.fixed else f"{least}-{most}"


def _target(
    backend: Backend, capabilities: list[str], plugin: Path | None, timing_cache: Path | None, path: Path
) -> Target:
    if backend is Backend.TENSORRT_RTX:
        for option, value in (("--plugin", plugin), ("--timing-cache", timing_cache)):
            if value is not None:
                raise InputError(f"{option}: expected --backend tensorrt with it: TensorRT-RTX has no such thing")
        return RtxTarget(capabilities)
    if capabilities:
        raise InputError("--compute-capability: expected --backend tensorrt-rtx with it: TensorRT builds for its GPU")
    return TensorRTTarget(plugin, timing_cache or path.with_name("tensorrt.timing"))


if __name__ == "__main__":
    cli.run(app, several=("--compute-capability",))
