"""What the ahead-of-time plugin lets TensorRT launch, launched: PTX, grid, block and arguments just as recorded."""

import ctypes
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from plugins import launch, nvrtc, op
from plugins.launch import Layer, Layout, Precision
from tests.plugins.cpu_shim import build as cpu
from tests.plugins.cpu_shim.cases import Case, check
from tests.plugins.tensorrt_build import (
    LINEAR_ONLY,
    OTHERS,
    SADNET,
    Launch,
    expected_kernel,
    node_of,
    ptx_parameters,
    recorded_launch,
    tactics_of,
)


def arranged(case: Case, layout: Layout, device: str) -> tuple[list[Tensor], Tensor]:
    """x, offset_mask, weight and bias as TensorRT would hand them over, with NaN where it pads; and y, all NaN."""
    tensors = [torch.from_numpy(a).to(device) for a in case.arrays()]
    y = tensors[0].new_full((case.n, case.layer.outputs, case.h, case.w), torch.nan)
    if layout == "hwc8":
        padding = case.layer.pitch - tensors[1].shape[1]
        tensors[1] = torch.nn.functional.pad(tensors[1], (0, 0, 0, 0, 0, padding), value=torch.nan)
        tensors[:3] = [t.permute(0, 2, 3, 1).contiguous() for t in tensors[:3]]
        y = y.permute(0, 2, 3, 1).contiguous()
    return tensors, y


def launch_recorded(driver: Any, record: Launch, inputs: list[Tensor], y: Tensor) -> None:
    """What TensorRT does with the record: arguments by address, in the order inputs, scalars, y."""

    def checked(status: Any, *values: Any) -> Any:
        assert int(status) == 0, status
        return values[0] if values else None

    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, y)]
    values = [*pointers[:-1], *map(ctypes.c_int32, record.scalars), pointers[-1]]
    arguments = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    module = checked(*driver.cuModuleLoadData(record.ptx + b"\0"))
    function = checked(*driver.cuModuleGetFunction(module, record.entry.encode()))
    address = ctypes.addressof(arguments)
    checked(*driver.cuLaunchKernel(function, *record.grid, *record.block, record.shared, 0, address, 0))
    checked(*driver.cuCtxSynchronize())
    checked(*driver.cuModuleUnload(module))


class CpuDriver:
    """Of cuda.bindings.driver what `launch_recorded` calls: runs the kernel's source, compiled for the CPU."""

    def __init__(self, kernel: cpu.Compiled, inputs: list[Tensor]) -> None:
        self.kernel, self.bytes = kernel, (ctypes.c_size_t * 4)(*(t.nbytes for t in inputs))

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:  # noqa: N802
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, list[Any]]:  # noqa: N802
        assert name.decode() == launch.ENTRY
        return 0, [{"u64": ctypes.c_void_p, "u32": ctypes.c_int32}[kind] for kind in ptx_parameters(module)]

    def cuLaunchKernel(self, function: list[Any], *rest: int) -> tuple[int]:  # noqa: N802
        *grid, threads, block_y, block_z, shared, _stream, address, _extra = rest
        assert (block_y, block_z, shared) == (1, 1, 0)

        class Arguments(ctypes.Structure):  # as the kernel's entry takes them, one after another
            _fields_ = tuple((f"argument_{i}", kind) for i, kind in enumerate(function))

        addresses = (ctypes.c_void_p * len(function)).from_address(address)
        arguments = Arguments(*(kind.from_address(a).value for kind, a in zip(function, addresses, strict=True)))
        blocks = (ctypes.c_uint * 3)(*grid)
        fault = self.kernel.entry(ctypes.byref(arguments), self.bytes, blocks, threads, ctypes.c_uint64(0))
        assert not fault, fault
        return (0,)

    def cuCtxSynchronize(self) -> tuple[int]:  # noqa: N802
        return (0,)

    def cuModuleUnload(self, module: bytes) -> tuple[int]:  # noqa: N802
        return (0,)


def run_recorded(
    trt: ModuleType, driver: Any, case: Case, layout: Layout, tactic: int, tensors: tuple[list[Tensor], Tensor]
) -> None:
    sizes = {"n": case.n, "h": case.h, "w": case.w}
    inputs, y = tensors
    launch_recorded(driver, recorded_launch(trt, case.layer, case.precision, layout, tactic, sizes), inputs, y)
    found = (y.permute(0, 3, 1, 2) if layout == "hwc8" else y).cpu().numpy()
    check(found, case, rounds_samples=layout == "hwc8")


@pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler here: apt-get install g++")
@pytest.mark.parametrize(
    ("layer", "precision", "layout", "tactic"),
    [tactics_of(SADNET[0])[2], *tactics_of(OTHERS[0]), tactics_of(OTHERS[1])[2], tactics_of(LINEAR_ONLY)[0]],
)
def test_recorded_launch_computes_the_op_on_a_cpu(
    trt: ModuleType, qdp: ModuleType, tmp_path: Path, layer: Layer, precision: Precision, layout: Layout, tactic: int
) -> None:
    case = Case(layer, 2, 9, 21, precision=precision)
    inputs, y = arranged(case, layout, "cpu")
    driver = CpuDriver(cpu.build(expected_kernel(layer, precision, layout, tactic), tmp_path), inputs)
    run_recorded(trt, driver, case, layout, tactic, (inputs, y))


@pytest.mark.gpu
@pytest.mark.parametrize(("layer", "precision", "layout", "tactic"), tactics_of(*SADNET, *OTHERS, LINEAR_ONLY))
def test_recorded_launch_computes_the_op_on_a_gpu(
    trt: ModuleType, qdp: ModuleType, layer: Layer, precision: Precision, layout: Layout, tactic: int
) -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    case = Case(layer, 2, 37, 53, precision=precision)
    tensors = arranged(case, layout, "cuda")  # makes the context
    qdp.register()
    assert qdp.target() == nvrtc.architecture(nvrtc.capability(*torch.cuda.get_device_capability()))
    run_recorded(trt, driver, case, layout, tactic, tensors)


@pytest.mark.tensorrt
def test_full_tensorrt_parses_and_builds_the_node() -> None:
    """With the package `tensorrt` and a GPU, which no machine of ours has had: not run yet."""
    trt = importlib.import_module("tensorrt")
    qdp = importlib.import_module("plugins.tensorrt_qdp")
    layer, element = SADNET[0], onnx.TensorProto.FLOAT16
    x, offset_mask, weight, bias = Case(layer, 1, 64, 64).arrays()
    tensors = {"x": x, "offset_mask": offset_mask}
    graph = onnx.helper.make_graph(
        [node_of(layer)],
        "one_node",
        [onnx.helper.make_tensor_value_info(name, element, a.shape) for name, a in tensors.items()],
        [onnx.helper.make_tensor_value_info("y", element, x.shape)],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    opsets = [onnx.helper.make_opsetid("", 22), onnx.helper.make_opsetid(op.DOMAIN, op.VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    qdp.register()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    with qdp.errors():
        parsed = parser.parse(model.SerializeToString())
        assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    assert launch.ENTRY.encode() in bytes(plan)
