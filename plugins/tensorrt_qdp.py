"""The op as an ahead-of-time Python plugin of TensorRT: the PTX of our kernels goes into the engine, which then runs
wherever TensorRT does, without Python and without this package.

    tensorrt_qdp.register()
    with tensorrt_qdp.errors():
        ...  # TensorRT parses the ONNX model and builds the engine

TensorRT asks `describe` for y, `combinations` for the types and formats that the kernels take, and, for each of these
and each of its tactics, `compiled` for the PTX and its launch. It times them all on the GPU that it builds for. Tactic
i is the i-th of `launch.kernels`, from 1 on. Formats, of all but bias, which is always LINEAR:

    FP32, FP16   LINEAR   NCHW and OIHW
    FP16         HWC8     (N,H,W,C) and (O,3,3,C), where a channel count that is no multiple of 8 is padded to one

The kernel's arguments are those of `plugins.launch`: pointers to the inputs, int32 scalars, a pointer to y. TensorRT
passes no floats, hence the slope is compiled in.

Annotations must be the classes themselves: `tensorrt.plugin` inspects them, and text (`from __future__`) it refuses.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import DependencyError, InputError, ModelError
from common.machine import gpu
from common.tensorrt_library import load_builder
from plugins import launch, nvrtc, op

trt = load_builder()
import tensorrt.plugin as trtp  # noqa: E402 - an older TensorRT, refused above, may not have it

ID = f"{op.DOMAIN}::{op.NAME}"
ARCH_VARIABLE = "SADNET_CUDA_ARCH"
PRECISIONS: dict[Any, launch.Precision] = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"}
LAYOUTS: dict[Any, launch.Layout] = {trt.TensorFormat.LINEAR: "linear", trt.TensorFormat.HWC8: "hwc8"}
OFFERED: tuple[tuple[launch.Precision, launch.Layout, str], ...] = (
    ("fp32", "linear", "LINEAR"),
    ("fp16", "linear", "LINEAR"),
    ("fp16", "hwc8", "HWC8,HWC8,HWC8,LINEAR,HWC8"),
)
"""Precision and layout of the kernels, and the formats of x, offset_mask, weight, bias and y in TensorRT's words."""

Function = TypeVar("Function", bound=Callable[..., Any])
_failures: list[Exception] = []
_registered = False
_arch: int | None = None


def register(arch: int | None = None) -> None:
    """Make the op known to TensorRT in this process. A second call changes nothing but the architecture.

    arch: what the PTX is compiled for, ten times the compute capability; by default what $SADNET_CUDA_ARCH says, else
    that of the GPU that TensorRT builds for. Raises DependencyError where another plugin has the op's name already.
    """
    global _registered, _arch
    _arch = arch
    if _registered:
        return
    if trt.get_plugin_registry().get_creator(op.NAME, str(op.VERSION), op.DOMAIN) is not None:
        raise DependencyError(f"expected no plugin {ID} yet, found one (the C++ plugin's library?): load only one")
    trtp.register(ID)(describe)
    trtp.autotune(ID)(combinations)
    trtp.aot_impl(ID)(compiled)
    _registered = True


@contextmanager
def errors() -> Iterator[None]:
    """Around TensorRT's parser and builder: raises the first error that happened in this plugin.

    TensorRT prints what its Python plugins raise on stderr and goes on, and then fails for a reason that names none.
    """
    _failures.clear()
    try:
        yield
    except Exception as error:
        if _failures:
            raise _failures[0] from error
        raise
    if _failures:
        raise _failures[0]


def _kept(function: Function) -> Function:
    """The function, whose errors `errors` raises. Its signature, which TensorRT reads, stays."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            _check_attributes(function, args, kwargs)
            return function(*args, **kwargs)
        except Exception as error:
            _failures.append(error)
            raise

    return call  # type: ignore[return-value]


def _check_attributes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """TensorRT's parser passes the attributes that the node has, and knows no defaults."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        found = ", ".join(kwargs) or "none"
        raise ModelError(f"{op.NAME}: expected attributes offset_groups and negative_slope, found {found}") from error


@_kept
def describe(
    x: trtp.TensorDesc,
    offset_mask: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    bias: trtp.TensorDesc,
    offset_groups: int,
    negative_slope: float,
) -> trtp.TensorDesc:
    """Type and shape of y. Raises ModelError for types and shapes that do not fit, as far as they are known."""
    inputs = (x, offset_mask, weight, bias)
    if x.dtype not in PRECISIONS or any(t.dtype != x.dtype for t in inputs):
        found = ", ".join(t.dtype.name for t in inputs)
        raise ModelError(f"{op.NAME}: expected x, offset_mask, weight and bias all FLOAT or all HALF, found {found}")
    if any(size.is_fake for t in inputs for size in t.shape_expr):
        return x.like()  # TensorRT asks for the type first, without shapes
    shapes = [[size.constant_value() if size.is_constant else -1 for size in t.shape_expr] for t in inputs]
    _check(*shapes, offset_groups=offset_groups)
    n, _, h, w = x.shape_expr
    return trtp.from_shape_expr((n, weight.shape_expr[0], h, w), x.dtype)


def _check(x: list[int], offset_mask: list[int], weight: list[int], bias: list[int], *, offset_groups: int) -> None:
    """Shapes of the inputs, -1 for a size that is known at run time only: images, height and width may be."""
    if len(x) == len(offset_mask) == 4:
        for axis in (0, 2, 3):
            if -1 in (x[axis], offset_mask[axis]):
                x[axis] = offset_mask[axis] = -1
    if -1 in (*x[1:2], *offset_mask[1:2], *weight, *bias):
        raise ModelError(
            f"{op.NAME}: expected fixed channels of x and offset_mask and fixed shapes of weight and bias, found "
            f"{x}, {offset_mask}, {weight}, {bias}"
        )
    try:
        op.output_shape(x, offset_mask, weight, bias, offset_groups)
    except ValueError as error:
        raise ModelError(str(error)) from error


@_kept
def combinations(
    x: trtp.TensorDesc,
    offset_mask: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    bias: trtp.TensorDesc,
    offset_groups: int,
    negative_slope: float,
    outputs: tuple[trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    """Types and formats that some kernel takes, each with its tactics. The network's types choose among them."""
    found = []
    for precision, layout, formats in OFFERED:
        layer = _layer(x, weight, offset_groups, negative_slope, layout)
        try:
            kernels = launch.kernels(layer, precision, layout)
        except InputError:
            continue
        if layout == "hwc8" and _image_bytes(x) >= launch.IMAGE_LIMIT:
            continue
        tactics = list(range(1, len(kernels) + 1))
        found.append(trtp.AutoTuneCombination(",".join([precision.upper()] * 5), formats, tactics))
    return found


@_kept
def compiled(
    x: trtp.TensorDesc,
    offset_mask: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    bias: trtp.TensorDesc,
    offset_groups: int,
    negative_slope: float,
    outputs: tuple[trtp.TensorDesc],
    tactic: int,
) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    """Name, PTX and launch of a tactic's kernel, for the types and formats that TensorRT has chosen."""
    layout = LAYOUTS[x.format]
    layer = _layer(x, weight, offset_groups, negative_slope, layout)
    kernel = launch.kernels(layer, PRECISIONS[x.dtype], layout)[tactic - 1]
    n, _, h, w = x.shape_expr
    params = trtp.KernelLaunchParams()  # shared memory stays 0: the kernels declare theirs
    params.grid_x, params.grid_y, params.grid_z = kernel.grid(n, h, w)
    params.block_x = kernel.threads
    values = {"n": n, "c": layer.channels, "h": h, "w": w, "o": layer.outputs, "offset_groups": offset_groups}
    scalars = trtp.SymIntExprs.from_tuple([trtp.SymInt32(values[name]) for name in launch.SCALARS])
    return launch.ENTRY, _ptx(kernel, target()), params, scalars


def _layer(
    x: trtp.TensorDesc, weight: trtp.TensorDesc, offset_groups: int, negative_slope: float, layout: launch.Layout
) -> launch.Layer:
    """What the kernels are compiled for. `describe` has checked the shapes, whose channels are known."""
    channels, outputs = int(x.shape[1]), int(weight.shape[0])
    pitch = -(-op.offset_mask_channels(offset_groups) // 8) * 8 if layout == "hwc8" else 0
    return launch.Layer(channels, outputs, offset_groups, negative_slope, pitch)


def _image_bytes(x: trtp.TensorDesc) -> int:
    """Bytes of one image of x in half precision, at the largest size that the engine is built for."""
    _, c, h, w = x.shape.max if x.is_dynamic else x.shape
    return int(c) * int(h) * int(w) * 2


@functools.cache
def _ptx(kernel: launch.Kernel, arch: int) -> bytes:
    # TensorRT asks for a kernel more than once; NVRTC's text ends with a zero, which is none of it
    return nvrtc.compile_kernel(kernel, arch).ptx.rstrip(b"\0")


def target() -> int:
    """What the PTX is compiled for, ten times the compute capability; see `register`.

    Raises InputError for a $SADNET_CUDA_ARCH that is no number, DependencyError where there is no GPU to ask or it is
    older than the kernels' oldest architecture.
    """
    text = os.environ.get(ARCH_VARIABLE)
    if _arch is not None:
        number = _arch
    elif text is None:
        try:
            number = gpu().number
        except DependencyError as error:
            hint = f"set {ARCH_VARIABLE} to a compute capability such as 89 to build without it"
            raise DependencyError(f"{error}; {hint}") from error
    elif text.isdecimal():
        number = int(text)
    else:
        raise InputError(f"{ARCH_VARIABLE}: expected a compute capability such as 89, found {text!r}")
    return nvrtc.architecture(number)
