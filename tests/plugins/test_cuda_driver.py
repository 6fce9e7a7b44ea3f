"""What comes before a launch, on the CPU: arguments in order, tensors that do not fit, a driver's refusals."""

import ctypes
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import DependencyError, InputError
from plugins import cuda_driver, launch, nvrtc, op
from plugins.launch import Layer

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
Make = Callable[..., Operands]
LAYER = Layer(16, 24, 4)


def with_y(tensors: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, offset_mask, weight, bias = tensors
    y = torch.full((x.shape[0], weight.shape[0], *x.shape[2:]), torch.nan, dtype=x.dtype)
    return x, offset_mask, weight, bias, y


def pack(
    kernel: launch.Kernel, tensors: Sequence[Tensor], offset_groups: int = LAYER.offset_groups
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    x, offset_mask, weight, bias, y = tensors
    return cuda_driver.pack(kernel, x, offset_mask, weight, bias, y, offset_groups)


def channels_last(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]


@pytest.fixture
def half(operands: Make) -> list[Tensor]:
    return channels_last(with_y(operands(2, 16, 4, 24, 5, 7, dtype=torch.float16)))


def fused() -> launch.Kernel:
    return launch.kernels(LAYER, "fp16", "hwc8")[0]


def test_arguments_are_inputs_then_sizes_then_y(half: list[Tensor]) -> None:
    values, types = pack(fused(), half)
    pointers = [t.data_ptr() for t in half]
    assert values == (*pointers[:4], 2, 16, 5, 7, 24, 4, pointers[4])
    assert types == (ctypes.c_void_p,) * 4 + (ctypes.c_int,) * len(launch.SCALARS) + (ctypes.c_void_p,)


def test_the_kernels_parameters_are_of_the_kinds_that_are_passed(half: list[Tensor]) -> None:
    _, types = pack(fused(), half)
    ptx = nvrtc.compile_kernel(fused(), 80).ptx.decode()
    header = ptx[ptx.index(f".entry {launch.ENTRY}(") : ptx.index(")", ptx.index(f".entry {launch.ENTRY}("))]
    kinds = [line.split()[1] for line in header.splitlines() if ".param" in line]
    assert kinds == [{ctypes.c_void_p: ".u64", ctypes.c_int: ".u32"}[kind] for kind in types]


def test_linear_kernels_take_contiguous_tensors(operands: Make) -> None:
    tensors = with_y(operands(2, 16, 4, 24, 5, 7, dtype=torch.float32))
    (kernel,) = launch.kernels(LAYER, "fp32", "linear")
    values, _ = pack(kernel, tensors)
    assert values[0] == tensors[0].data_ptr()
    shifted = torch.zeros(25)[1:]  # at no multiple of 16 bytes, which they do not need
    assert pack(kernel, [*tensors[:3], shifted, tensors[4]])[0][3] == shifted.data_ptr()
    rest = [channels_last(tensors)[0], *tensors[1:]]
    with pytest.raises(InputError, match=r"expected x in torch\.contiguous_format for linear\.cu"):
        pack(kernel, rest)


@pytest.mark.parametrize("name", ["x", "offset_mask", "weight", "y"])
def test_tensors_in_another_order_are_refused(half: list[Tensor], name: str) -> None:
    index = ["x", "offset_mask", "weight", "bias", "y"].index(name)
    half[index] = half[index].contiguous()
    with pytest.raises(InputError, match=rf"expected {name} in torch\.channels_last for fused\.cu, found strides"):
        pack(fused(), half)


def test_another_type_is_refused(half: list[Tensor]) -> None:
    half[3] = half[3].float()
    with pytest.raises(InputError, match=r"expected bias of torch\.float16 on cpu, found torch\.float32"):
        pack(fused(), half)


def test_an_output_of_another_size_is_refused(half: list[Tensor]) -> None:
    half[4] = half[4][:1]
    with pytest.raises(InputError, match=r"expected y of shape \(2, 24, 5, 7\), found \(1, 24, 5, 7\)"):
        pack(fused(), half)


def test_a_shifted_view_is_refused(half: list[Tensor]) -> None:
    half[3] = torch.zeros(25, dtype=torch.float16)[1:]
    with pytest.raises(InputError, match="expected bias at a multiple of 16 bytes"):
        pack(fused(), half)


def test_an_image_of_4_gigabytes_is_refused() -> None:
    side = 8192
    x = torch.empty((1, 32, side, side), dtype=torch.float16, device="meta").to(memory_format=torch.channels_last)
    shapes = ((1, op.offset_mask_channels(8), side, side), (32, 32, 3, 3), (32,), (1, 32, side, side))
    rest = channels_last(tuple(torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes))
    kernel = launch.kernels(Layer(32, 32), "fp16", "hwc8")[0]
    with pytest.raises(InputError, match=r"expected images below 4294967296 bytes, found 32 x 8192 x 8192: use tiles"):
        pack(kernel, [x, *rest], 8)


def test_tensors_on_the_cpu_are_not_launched_on(half: list[Tensor]) -> None:
    x, offset_mask, weight, bias, y = half
    with pytest.raises(InputError, match="expected tensors on a CUDA device, found them on cpu"):
        cuda_driver.launch(fused(), x, offset_mask, weight, bias, y, 4)


def test_more_images_than_a_grid_has_are_refused() -> None:
    shapes = ((2**16, 16, 1, 1), (2**16, op.offset_mask_channels(4), 1, 1), (24, 16, 3, 3), (24,), (2**16, 24, 1, 1))
    tensors = channels_last(tuple(torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes))
    with pytest.raises(InputError, match="expected fewer than 65536 images, found 65536"):
        pack(fused(), tensors)


def test_planes_of_2_31_values_are_refused() -> None:
    shapes = ((1, 1, 2**16, 2**15), (1, 27, 2**16, 2**15), (1, 1, 3, 3), (1,), (1, 1, 2**16, 2**15))
    tensors = [torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes]
    (kernel,) = launch.kernels(Layer(1, 1, 1), "fp16", "linear")
    with pytest.raises(InputError, match="expected fewer than 2147483648 pixels and weights, found 65536 x 32768"):
        pack(kernel, tensors, 1)


class OldDriver:
    """A driver that refuses what it is given, with the status of its making."""

    def __init__(self, name: str, version: int) -> None:
        from cuda.bindings import driver

        self.CUresult, self.version = driver.CUresult, version
        self.status = getattr(driver.CUresult, name)

    def cuDriverGetVersion(self) -> tuple[Any, int]:  # noqa: N802
        return self.CUresult.CUDA_SUCCESS, self.version

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, None]:  # noqa: N802
        return self.status, None

    def cuGetErrorString(self, status: Any) -> tuple[Any, bytes]:  # noqa: N802
        return 0, b"no kernel image is available"


@pytest.mark.parametrize(
    ("status", "version", "message"),
    [
        (
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            12080,
            r"fused\.cu: expected a driver of CUDA 13\.0 or later.*of CUDA 12\.8.*driver 580",
        ),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", 12080, r"CUDA 13\.0 or later.*of CUDA 12\.8.*driver 580"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", 13000, r"expected to load fused\.cu, found: no kernel image is available"),
    ],
)
def test_a_driver_that_refuses_the_kernel_is_explained(
    monkeypatch: pytest.MonkeyPatch, status: str, version: int, message: str
) -> None:
    monkeypatch.setattr(cuda_driver, "_driver", lambda: OldDriver(status, version))
    with pytest.raises(cuda_driver.LaunchError, match=message):
        cuda_driver.load(b"", "fused.cu")


@pytest.mark.parametrize(
    ("found", "compiled_for"), [(75, 75), (86, 86), (87, 86), (89, 89), (103, 100), (121, 120), (130, 120)]
)
def test_an_unknown_gpu_gets_the_newest_kernels_that_it_runs(found: int, compiled_for: int) -> None:
    assert nvrtc.architecture(found) == compiled_for


class Loads:
    """A driver that takes all, and remembers what it is given."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.mode = "global"

    def cuThreadExchangeStreamCaptureMode(self, mode: str) -> tuple[int, str]:  # noqa: N802
        before, self.mode = self.mode, mode
        return 0, before

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:  # noqa: N802
        assert self.mode == "relaxed"
        self.images.append(image)
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, bytes]:  # noqa: N802
        return 0, name


def test_machine_code_is_for_the_gpu_that_it_was_compiled_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Loads()
    monkeypatch.setattr(cuda_driver, "_driver", lambda: driver)
    compiled = nvrtc.Compiled("fused.cu", 100, b"PTX", b"machine code", ())
    for number in (100, 103):
        cuda_driver.functions(compiled, number, (launch.ENTRY,))
    assert driver.images == [b"machine code", b"PTX"]
    assert driver.mode == "global"  # as it was


def test_a_gpu_before_turing_is_refused() -> None:
    with pytest.raises(DependencyError, match=r"7\.5 \(Turing\) or later, found 7\.0"):
        nvrtc.architecture(70)


def test_a_gpu_that_runs_no_kernel_of_ours_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.warns(UserWarning, match=r"torchvision's deformable convolution runs.*Turing.*found 7\.0"):
        assert not cuda_driver.usable(device)
    assert not cuda_driver.usable(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert cuda_driver.usable(torch.device("cuda", 6))


def test_a_driver_that_is_too_old_leaves_the_op_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: OldDriver("CUDA_SUCCESS", 12080))
    with pytest.warns(UserWarning, match=r"torchvision's .* driver of CUDA 13\.0 or later, found one of CUDA 12\.8"):
        assert not cuda_driver.usable(torch.device("cuda", 4))
