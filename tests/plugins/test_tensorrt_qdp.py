"""The ahead-of-time plugin under TensorRT's own registry and Python code (tensorrt-lean), without a GPU."""

import importlib
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from common.errors import DependencyError, InputError, ModelError
from common.machine import gpu
from plugins import launch, nvrtc, op
from plugins.launch import Layer, Layout, Precision
from tests.plugins.tensorrt_build import (
    ARCH,
    LINEAR_ONLY,
    OTHERS,
    SADNET,
    Build,
    Launch,
    compile_once,
    expected_kernel,
    node_of,
    parsed_fields,
    ptx_parameters,
    recorded_launch,
    shapes_of,
    tactics_of,
)

LARGEST = {"n": 4, "h": 2160, "w": 3840}
SIZES = (
    {"n": 1, "h": 1, "w": 1},
    {"n": 1, "h": 320, "w": 480},
    {"n": 2, "h": 101, "w": 33},
    {"n": 3, "h": 15, "w": 17},
)
ALL = tactics_of(*SADNET, *OTHERS, LINEAR_ONLY)


class TestWhatTensorRTIsTold:
    def test_the_creator_is_found_by_the_names_that_the_node_carries(self, trt: ModuleType, qdp: ModuleType) -> None:
        qdp.register(ARCH)  # again
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node_of(SADNET[0]).attribute}
        name, space = attributes["plugin_version"].decode(), attributes["plugin_namespace"].decode()
        creator = trt.get_plugin_registry().get_creator(op.NAME, name, space)
        assert [field.name for field in creator.field_names] == ["offset_groups", "negative_slope"]
        assert attributes["aot"] == 1
        fields = parsed_fields(trt, node_of(OTHERS[0]), creator)
        assert [(f.name, f.data.tolist()) for f in fields] == [
            ("offset_groups", [3]),
            ("negative_slope", [np.float32(0.1)]),
        ]

    def test_a_size_may_be_known_of_one_input_alone(self, qdp: ModuleType) -> None:
        x, offset_mask = [-1, 32, 40, -1], [1, op.offset_mask_channels(8), -1, 48]
        qdp._check(x, offset_mask, [32, 32, 3, 3], [32], offset_groups=8)

    @pytest.mark.parametrize("dtype", ["FLOAT", "HALF"])
    @pytest.mark.parametrize("layer", [*SADNET, *OTHERS, LINEAR_ONLY])
    def test_type_and_shape_of_y(self, trt: ModuleType, qdp: ModuleType, layer: Layer, dtype: str) -> None:
        for sizes in SIZES:
            for fixed in (None, sizes):
                build = Build(trt, node_of(layer), shapes_of(layer, fixed), dtype, LARGEST)
                assert isinstance(build.plugin, trt.IPluginV3QuickAOTBuild)
                assert [t.name for t in build.output_types] == [dtype]
                found = [size.at(sizes) for size in build.outputs[0]]
                assert found == [sizes["n"], layer.outputs, sizes["h"], sizes["w"]]

    @pytest.mark.parametrize(
        ("layer", "fused"), [(layer, len(launch.tiles(layer))) for layer in (*SADNET, *OTHERS)] + [(LINEAR_ONLY, 0)]
    )
    def test_types_formats_and_tactics(self, trt: ModuleType, qdp: ModuleType, layer: Layer, fused: int) -> None:
        linear = [tuple((dtype, "LINEAR") for _ in range(5)) for dtype in ("FLOAT", "HALF")]
        last = tuple(("HALF", kind) for kind in ("HWC8", "HWC8", "HWC8", "LINEAR", "HWC8"))
        build = Build(trt, node_of(layer), shapes_of(layer), "HALF", LARGEST)
        assert build.combinations() == [*linear, last][: 3 if fused else 2]
        assert [build.tactics(c) for c in linear] == [[1], [1]]
        if fused:
            assert build.tactics(last) == list(range(1, fused + 1))

    def test_no_channels_last_images_beyond_the_kernels_reach(self, trt: ModuleType, qdp: ModuleType) -> None:
        layer = SADNET[0]
        for width, offered in ((8191, 3), (8192, 2)):  # 32 channels of 8192 x 8192 halves are 4 GiB
            largest = {"n": 1, "h": 8192, "w": width}
            for fixed in (None, largest):
                build = Build(trt, node_of(layer), shapes_of(layer, fixed), "HALF", largest)
                assert len(build.combinations()) == offered


class TestTheRecordedLaunch:
    @pytest.mark.parametrize(("layer", "precision", "layout", "tactic"), ALL)
    def test_is_that_of_the_tactics_kernel(
        self, trt: ModuleType, qdp: ModuleType, layer: Layer, precision: Precision, layout: Layout, tactic: int
    ) -> None:
        kernel = expected_kernel(layer, precision, layout, tactic)
        ptx = compile_once(kernel, ARCH).ptx.rstrip(b"\0")
        assert f".target sm_{ARCH}".encode() in ptx
        for sizes in SIZES:
            n, h, w = sizes.values()
            scalars = (n, layer.channels, h, w, layer.outputs, layer.offset_groups)
            right = Launch(launch.ENTRY, ptx, kernel.grid(n, h, w), (kernel.threads, 1, 1), 0, scalars)
            for dynamic in (True, False):
                assert recorded_launch(trt, layer, precision, layout, tactic, sizes, dynamic) == right

    def test_arguments_are_those_of_the_source_and_of_the_ptx(self, trt: ModuleType, qdp: ModuleType) -> None:
        pointers, scalars = ["x", "offset_mask", "weight", "bias"], ["n", "c", "h", "w", "o", "groups"]
        for source in ("fused.cu", "linear.cu"):
            text = (launch.KERNELS / source).read_text()
            found = re.search(rf"{launch.ENTRY}\(([^)]*)\)", text)
            assert found
            assert [p.split()[-1].lstrip("*") for p in found[1].split(",")] == [*pointers, *scalars, "y"]
        for layer, precision, layout, tactic in ALL:
            record = recorded_launch(trt, layer, precision, layout, tactic, SIZES[0])
            kinds = ["u64"] * len(pointers) + ["u32"] * len(record.scalars) + ["u64"]
            assert ptx_parameters(record.ptx) == kinds

    def test_ptx_follows_the_architecture_that_is_asked_for(self, trt: ModuleType, qdp: ModuleType) -> None:
        for arch, found in ((75, 75), (87, 86), (103, 100), (121, 120)):
            qdp.register(arch)
            record = recorded_launch(trt, SADNET[0], "fp16", "hwc8", 1, SIZES[0])
            assert f".target sm_{found}".encode() in record.ptx
        qdp.register(70)
        with pytest.raises(DependencyError, match=r"expected a GPU of compute capability 7\.5 .* found 7\.0"):
            recorded_launch(trt, SADNET[0], "fp16", "hwc8", 1, SIZES[0])


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({1: (1, 215, 8, 8)}, r"expected offset_mask of shape \(1, 216, 8, 8\) .* found \(1, 215, 8, 8\)"),
            ({1: ("n", 216, 9, "w"), 0: (1, 32, 8, "w")}, r"expected offset_mask .* found \(-1, 216, 9, -1\)"),
            ({2: (32, 32, 5, 5)}, r"expected weight of shape \(32, 32, 3, 3\) .* found \(32, 32, 5, 5\)"),
            ({2: (32, 31, 3, 3)}, r"expected weight .* found \(32, 31, 3, 3\)"),
            ({3: (31,)}, r"expected bias of shape \(32,\) .* found \(31,\)"),
            ({3: (1, 32)}, r"expected bias with 1 dimensions, found shape \(1, 32\)"),
            ({0: (1, 36, 8, 8), 2: (32, 36, 3, 3)}, "expected offset_groups that divide the 36 channels"),
            ({0: (1, "c", 8, 8)}, "expected fixed channels of x and offset_mask"),
            ({2: ("o", 32, 3, 3)}, "fixed shapes of weight and bias"),
        ],
    )
    def test_shapes(self, trt: ModuleType, qdp: ModuleType, changed: dict[int, Any], message: str) -> None:
        shapes = list(shapes_of(SADNET[0], {"n": 1, "h": 8, "w": 8}))
        for index, shape in changed.items():
            shapes[index] = shape
        sizes = {"c": 32, "o": 32} | LARGEST
        with pytest.raises(ModelError, match=message) as caught, qdp.errors():
            Build(trt, node_of(SADNET[0]), shapes, "HALF", sizes)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("attribute", ["offset_groups", "negative_slope"])
    def test_a_node_without_an_attribute(self, trt: ModuleType, qdp: ModuleType, attribute: str) -> None:
        node = node_of(SADNET[0], **{attribute: None})
        with pytest.raises(ModelError, match="expected attributes offset_groups and negative_slope"), qdp.errors():
            Build(trt, node, shapes_of(SADNET[0]), "HALF", LARGEST)

    def test_types(self, trt: ModuleType, qdp: ModuleType) -> None:
        with pytest.raises(ModelError, match="all FLOAT or all HALF, found BF16, BF16"):
            Build(trt, node_of(SADNET[0]), shapes_of(SADNET[0]), "BF16", LARGEST)

    def test_offset_groups_that_are_none(self, trt: ModuleType, qdp: ModuleType) -> None:
        with pytest.raises(ModelError, match=r"expected offset_groups .* found 0"):
            Build(trt, node_of(SADNET[0], offset_groups=0), shapes_of(SADNET[0]), "HALF", LARGEST)


class TestErrorsThatTensorRTSwallows:
    """TensorRT's bindings print what a plugin raises and return a code; then the build fails, or goes on."""

    def test_ours_comes_out_where_tensorrt_goes_on(self, trt: ModuleType, qdp: ModuleType) -> None:
        with pytest.raises(ModelError, match="found BF16"), qdp.errors():
            self.swallow(trt, "BF16")

    def test_ours_comes_out_where_another_follows(self, trt: ModuleType, qdp: ModuleType) -> None:
        def build() -> None:
            self.swallow(trt, "BF16")
            raise RuntimeError("expected a plan, found none")

        with pytest.raises(ModelError, match="found BF16"), qdp.errors():
            build()

    def test_what_does_not_compile(self, trt: ModuleType, qdp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvrtc, "compile_kernel", lambda *_: nvrtc.compile_source("broken.cu", "nonsense", ARCH, {}))
        monkeypatch.setattr(qdp, "_ptx", qdp._ptx.__wrapped__)
        with pytest.raises(nvrtc.CompileError, match=r"broken\.cu\(1\)"), qdp.errors():
            self.swallow(trt, "HALF")

    def test_others_pass_and_the_past_is_forgotten(self, trt: ModuleType, qdp: ModuleType) -> None:
        self.swallow(trt, "BF16")
        with qdp.errors():
            self.swallow(trt, "HALF")
        with pytest.raises(RuntimeError, match="none of ours"), qdp.errors():
            raise RuntimeError("none of ours")

    @staticmethod
    def swallow(trt: ModuleType, dtype: str) -> None:
        try:
            build = Build(trt, node_of(SADNET[0]), shapes_of(SADNET[0]), dtype, LARGEST)
            build.record(build.combinations()[-1], 1)
        except Exception as error:
            print(error, file=sys.stderr)


class TestWhereItIsBuilt:
    def test_the_variable_says_for_what(
        self, trt: ModuleType, qdp: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        qdp.register()
        monkeypatch.setenv("SADNET_CUDA_ARCH", "87")
        assert qdp.target() == 86
        monkeypatch.setenv("SADNET_CUDA_ARCH", "sm_87")
        with pytest.raises(
            InputError, match="SADNET_CUDA_ARCH: expected a compute capability such as 89, found 'sm_87'"
        ):
            qdp.target()

    @pytest.mark.parametrize("current", [True, False])
    def test_else_the_gpu_is_asked(self, qdp: ModuleType, monkeypatch: pytest.MonkeyPatch, current: bool) -> None:
        driver = importlib.import_module("cuda.bindings.driver")
        wanted = driver.CUdevice_attribute
        capabilities = {
            ("first", wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR): 7,
            ("first", wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR): 5,
            ("second", wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR): 12,
            ("second", wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR): 1,
        }
        none = (driver.CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        monkeypatch.setattr(driver, "cuInit", lambda _: (0,))
        monkeypatch.setattr(driver, "cuCtxGetDevice", lambda: (0, "second") if current else none)
        monkeypatch.setattr(driver, "cuDeviceGet", lambda _: (0, "first"))
        monkeypatch.setattr(driver, "cuDeviceGetName", lambda *_: (0, b"GPU\0\0rubbish"))
        monkeypatch.setattr(driver, "cuDeviceGetAttribute", lambda kind, device: (0, capabilities[device, kind]))
        qdp.register()
        assert qdp.target() == (120 if current else 75)
        assert gpu().name == "GPU"

    def test_no_driver_and_no_gpu_are_one_line(self, qdp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = importlib.import_module("cuda.bindings.driver")

        def missing(_: int) -> None:
            raise RuntimeError("libcuda.so.1: cannot open")

        qdp.register()
        monkeypatch.setattr(driver, "cuInit", missing)
        with pytest.raises(DependencyError, match=r"expected an NVIDIA driver.*; set SADNET_CUDA_ARCH"):
            qdp.target()
        monkeypatch.setattr(driver, "cuInit", lambda _: (driver.CUresult.CUDA_ERROR_NO_DEVICE,))
        with pytest.raises(DependencyError, match=r"expected an NVIDIA GPU, found none \(CUDA_ERROR_NO_DEVICE\)"):
            qdp.target()


class TestWithoutTensorRT:
    @pytest.mark.parametrize(
        ("package", "message"),
        [
            (None, "expected TensorRT's Python package, found none"),
            (SimpleNamespace(__version__="11.3.0.99"), r"expected TensorRT 11\.4 or later, found 11\.3\.0\.99"),
            (SimpleNamespace(__version__="10.16.1.11"), r"expected TensorRT 11\.4 or later, found 10\.16\.1\.11"),
        ],
    )
    def test_the_import_names_the_command(self, monkeypatch: pytest.MonkeyPatch, package: Any, message: str) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", package)
        monkeypatch.delitem(sys.modules, "plugins.tensorrt_qdp", raising=False)
        with pytest.raises(DependencyError, match=message + ".*: pip install --extra-index-url"):
            importlib.import_module("plugins.tensorrt_qdp")

    def test_another_plugin_of_that_name_is_refused(
        self, trt: ModuleType, qdp: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qdp, "_registered", False)
        with pytest.raises(DependencyError, match=r"expected no plugin sadnet::ModulatedDeformConv2d yet, found one"):
            qdp.register()
