"""The graph that a plan is made of: its types, and that it computes what the exported file does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common.errors import ModelError
from common.images import read_picture, rgb8
from common.metrics import psnr
from export import plan_graph
from export.parity import ASSETS, check_parity
from export.plan_types import Precision, inferred, is_convolution, is_op, retype
from export.to_onnx import Io, export_network
from export.to_onnx import Precision as FilePrecision
from train.sadnet import SADNet, SADNetConfig
from train.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ASSETS / "blind_color.onnx"
Images = NDArray[np.float32]


def bundled() -> onnx.ModelProto:
    return plan_graph.load_network(BUNDLED)[0]


def stated(precision: Precision, height: int, width: int) -> onnx.ModelProto:
    """The bundled model as TensorRT-RTX gets it for images of at most this size; all sizes stay dynamic here."""
    model = bundled()
    retype(model, precision)
    return plan_graph.with_grid_sample(model, height, width)


def denoise(model: onnx.ModelProto, images: Images, *, to_the_letter: bool = False) -> Images:
    """By ONNX Runtime, which computes half graphs in fp32 as far as it may, unless it runs them `to_the_letter`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if to_the_letter:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Images = session.run(None, {model.graph.input[0].name: images})[0]
    return result


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = inferred(model)
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def small(io: Io, precision: FilePrecision = FilePrecision.FP32) -> onnx.ModelProto:
    """An exported network without the op."""
    torch.manual_seed(0)
    network = SADNet(SADNetConfig(channels=1, rsab=False, offset_transfer=False, context=False))
    torch.nn.init.normal_(network.out.weight, std=0.1)  # a new network's are zero: it would be the identity
    return export_network(network, precision, io, {})


def assert_types(model: onnx.ModelProto, element: int) -> None:
    """Convolutions and all between them are of the type, the residual's addition is fp32."""
    found = types(model)
    for node in filter(is_convolution, model.graph.node):
        assert {found[name] for name in (*node.input, *node.output)} == {element}, node.name
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4} == {element}
    for node in model.graph.node:
        if node.op_type in ("LeakyRelu", "Concat", "Resize"):
            assert found[node.output[0]] == element, node.name
    last = [node for node in model.graph.node if node.op_type == "Add"][-1]
    assert {found[name] for name in (*last.input, *last.output)} == {TensorProto.FLOAT}


def test_plan_of_a_file_whose_nodes_state_no_attributes_is_that_of_one_whose_do(tmp_path: Path) -> None:
    bare = onnx.load(BUNDLED)
    for node in filter(is_op, bare.graph.node):
        del node.attribute[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    model, _ = plan_graph.load_network(tmp_path / "bare.onnx")
    of_bare, of_stated = (plan_graph.with_plugin(m).graph.node for m in (model, bundled()))
    assert of_bare == of_stated
    retype(model, Precision.FP32)
    assert plan_graph.with_grid_sample(model, 96, 96) == stated(Precision.FP32, 96, 96)


@pytest.mark.parametrize(
    ("precision", "element"), [(Precision.FP16, TensorProto.FLOAT16), (Precision.FP32, TensorProto.FLOAT)]
)
def test_bundled_file_takes_either_type(precision: Precision, element: int) -> None:
    model = bundled()
    assert sum(map(is_op, model.graph.node)) == 4
    retype(model, precision)
    onnx.checker.check_model(model, full_check=True)
    assert_types(model, element)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == (2 if precision is Precision.FP16 else 0)
    assert {types(model)[name] for name in ("noisy", "denoised")} == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("io", "file_precision"),
    [
        (Io.FLOAT32, FilePrecision.FP16),
        (Io.FLOAT16, FilePrecision.FP32),
        (Io.UINT8, FilePrecision.FP32),
        pytest.param(Io.FLOAT32, FilePrecision.FP32, marks=pytest.mark.slow),
        pytest.param(Io.FLOAT16, FilePrecision.FP16, marks=pytest.mark.slow),
        pytest.param(Io.UINT8, FilePrecision.FP16, marks=pytest.mark.slow),
    ],
)
def test_every_exported_file_takes_either_type(io: Io, file_precision: FilePrecision) -> None:
    exported = small(io, file_precision)
    edges = {name: types(exported)[name] for name in ("noisy", "denoised")}
    for precision, element in ((Precision.FP16, TensorProto.FLOAT16), (Precision.FP32, TensorProto.FLOAT)):
        model = onnx.ModelProto()
        model.CopyFrom(exported)
        retype(model, precision)
        plan_graph.bytes_at_edges(model)
        onnx.checker.check_model(model, full_check=True)
        assert_types(model, element)
        assert {name: types(model)[name] for name in edges} == edges
        shape = (1, 16, 24, 1) if io is Io.UINT8 else (1, 1, 16, 24)
        x = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
        images = (x if io is Io.UINT8 else x / 255).astype(io)
        assert np.allclose(denoise(model, images), denoise(exported, images), atol=0 if io is Io.UINT8 else 2e-3)


def test_weights_beyond_half_precision_are_refused() -> None:
    model = bundled()
    tensor = model.graph.initializer[0]
    huge = np.full(tuple(tensor.dims), 1e5, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(huge, tensor.name))
    with pytest.raises(ModelError, match=r"expected weights that float16 holds, found 1e\+05 in network\.res1"):
        retype(model, Precision.FP16)


def test_control_flow_is_refused() -> None:
    model = bundled()
    body = helper.make_graph([], "nothing", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], [], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match="without control flow"):
        retype(model, Precision.FP16)


@pytest.mark.parametrize(
    ("height", "width", "strips"), [(320, 480, [1, 1, 1, 1]), (720, 1280, [8, 2, 1, 1]), (1088, 1920, [8, 4, 2, 1])]
)
def test_large_images_go_in_strips(height: int, width: int, strips: list[int]) -> None:
    model = stated(Precision.FP16, height, width)
    assert sum(node.op_type == "GridSample" for node in model.graph.node) == sum(strips)
    assert not model.functions
    assert not [node for node in model.graph.node if node.domain or node.op_type == "DeformConv"]


@pytest.mark.parametrize(
    ("precision", "bound"), [(Precision.FP32, 2e-5), (Precision.FP16, 4 / 255)], ids=["fp32", "fp16"]
)
@pytest.mark.parametrize("most", [(320, 480), (1088, 1920)], ids=["whole", "strips"])
def test_grid_sample_computes_what_deform_conv_does(precision: Precision, bound: float, most: tuple[int, int]) -> None:
    """At odd multiples of 8, in a batch, and 1920 wide, where coordinates that are off by half a pixel would show."""
    model, original = stated(precision, *most), bundled()
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 24, 1920), (2, 3, 40, 56), (1, 3, 72, 8), (1, 3, 8, 104), (1, 3, 8, 8)):
        x = rng.random(shape, dtype=np.float32)
        expected = denoise(original, x)
        assert np.abs(expected - x).max() > 0.3  # the network does something
        difference = np.abs(denoise(model, x) - expected)
        assert difference.max() <= bound, shape
        assert difference.mean() <= bound / 20, shape


def test_offset_convolutions_may_have_no_bias() -> None:
    """PyTorch's exporter drops one of zeros."""
    model = bundled()
    makers = {node.output[0]: node for node in model.graph.node}
    for node in filter(is_op, model.graph.node):
        del makers[node.input[1]].input[2]
    original = onnx.ModelProto()
    original.CopyFrom(model)
    retype(model, Precision.FP32)
    x = np.random.default_rng(0).random((1, 3, 40, 56), dtype=np.float32)
    found = denoise(plan_graph.with_grid_sample(model, 1088, 1920), x)  # in strips
    np.testing.assert_allclose(found, denoise(original, x), rtol=0, atol=2e-5)


def photo(name: str) -> Images:
    """A part of a sample photo, (1, 3, 160, 240)."""
    pixels = rgb8(read_picture(ASSETS / name))[:160, :240].astype(np.float32)
    return np.divide(pixels.transpose(2, 0, 1)[None], 255, dtype=np.float32)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A half graph as a GPU computes it: every node in fp32, its output rounded to half where the graph says half."""
    found = types(model)
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", half):
                attribute.i = single
        nodes.append(node)
        for index, name in enumerate(original.output):
            if found[name] == half:
                node.output[index] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], to=half))
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=single))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model


def test_half_precision_costs_no_quality() -> None:
    """With every value rounded, on a photo, and 1920 wide."""
    model, original = rounded(stated(Precision.FP16, 1088, 1920)), bundled()
    clean, noisy = (photo(f"astronaut_{name}.png") for name in ("clean", "noisy"))
    wide = np.random.default_rng(0).random((1, 3, 24, 1920), dtype=np.float32)
    for images in (noisy, wide):
        expected, found = denoise(original, images), denoise(model, images, to_the_letter=True)
        difference = np.abs(found - expected)
        assert 1e-5 < difference.mean() <= 0.2 / 255  # it is rounded
        assert difference.max() <= 4 / 255
        if images is noisy:
            assert abs(psnr(found, clean) - psnr(expected, clean)) <= 0.01


@pytest.mark.parametrize("precision", [Precision.FP16, pytest.param(Precision.FP32, marks=pytest.mark.slow)])
def test_strips_agree_with_pytorch_on_a_photo(tmp_path: Path, precision: Precision) -> None:
    """By the exported file's own check: from 480x320 over 481x321 to 1x1, and a batch; PSNR too."""
    path = tmp_path / "stated.onnx"
    onnx.save(stated(precision, 1088, 1920), path)
    network = load_weights(ASSETS / "blind_color.safetensors")
    check_parity(network, path, half=precision is Precision.FP16, io="float32")


def test_model_without_its_function_body_is_refused(tmp_path: Path) -> None:
    model = plan_graph.with_plugin(bundled())
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="expected the function body"):
        plan_graph.load_network(tmp_path / "bare.onnx")


@pytest.mark.parametrize("damage", ["name", "attribute", "inputs", "metadata"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    model = onnx.load(BUNDLED)
    node = next(filter(is_op, model.graph.node))
    if damage == "name":
        node.name = "QQQQ"
    elif damage == "inputs":
        del node.input[3]
    elif damage == "metadata":
        details = json.loads(model.metadata_props[0].value)
        helper.set_model_props(model, {"sadnet": json.dumps(details | {"format": 99})})
    else:
        node.attribute[0].name = "QQQQ"
    data = model.SerializeToString()
    if damage in ("name", "attribute"):  # bytes that are no UTF-8, which protobuf itself would not write
        assert data.count(b"QQQQ") == 1
        data = data.replace(b"QQQQ", b"Q\xe0\xe0Q")
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="format 1, found 99" if damage == "metadata" else "a damaged file"):
        plan_graph.load_network(path)


def test_an_op_whose_image_has_no_shape_is_refused(tmp_path: Path) -> None:
    model = bundled()
    retype(model, Precision.FP32)
    node = next(filter(is_op, model.graph.node))
    node.input[0] = model.graph.initializer[0].name
    with pytest.raises(ModelError, match="expected an image with channels into"):
        plan_graph.with_grid_sample(model, 96, 96)


def test_building_needs_no_pytorch() -> None:
    blocked = "import sys; sys.modules['torch'] = None; import export.to_plan"
    subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=True)
