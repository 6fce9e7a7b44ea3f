"""Export: what the file holds, what it computes, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from common.contract import METADATA_KEY
from common.errors import ModelError, OutputError
from common.padding import pad_to_multiple
from export import to_onnx
from export.parity import check_half, check_parity
from export.to_onnx import ExportedNetwork, Io, Precision, export_network, write_onnx
from plugins import op
from runtime.engines.ort import OrtEngine
from train.sadnet import ModulatedDeformConv, SADNet, SADNetConfig
from train.weights import load_weights, save_weights

ROOT = Path(__file__).resolve().parents[2]


def lively_network(config: SADNetConfig | None = None) -> SADNet:
    """A network whose output is not its input, and whose offsets reach several pixels."""
    torch.manual_seed(3)
    network = SADNet(config)
    torch.nn.init.normal_(network.out.weight, std=0.02)
    for module in network.modules():
        if isinstance(module, ModulatedDeformConv):
            torch.nn.init.normal_(module.conv_offset_mask.weight, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_weights(lively_network(), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    path = weights.with_name("lively.onnx")
    write_onnx(weights, path, Precision.FP32, Io.FLOAT32, overwrite=False)
    return path


@pytest.fixture(scope="module")
def exported_half(weights: Path) -> Path:
    path = weights.with_name("lively16.onnx")
    write_onnx(weights, path, Precision.FP16, Io.FLOAT32, overwrite=False)
    return path


@pytest.mark.parametrize(
    ("batch", "width", "height"),
    [(1, 480, 320), (1, 481, 321), (1, 37, 53), (1, 8, 8), (1, 5, 3), (1, 1, 1), (3, 40, 24)],
)
def test_onnx_runtime_agrees_with_pytorch(weights: Path, exported: Path, batch: int, width: int, height: int) -> None:
    x = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
    padded = pad_to_multiple(x)
    with torch.inference_mode():
        expected = load_weights(weights)(torch.from_numpy(padded)).numpy()
    with OrtEngine(exported) as engine:
        found = engine.run(padded)
    assert np.abs(expected - padded).max() > 1e-2  # the network does something
    assert np.abs(found - expected).max() <= 1e-4


def test_file_keeps_the_op_as_one_node_with_its_body(exported: Path) -> None:
    model = onnx.load(exported)
    nodes = [n for n in model.graph.node if n.domain == op.DOMAIN]
    assert [n.op_type for n in nodes] == [op.NAME] * 4
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["offset_groups"] == 8
        assert attributes["negative_slope"] == pytest.approx(0.2)
        assert attributes["plugin_namespace"] == b"sadnet"
    assert [(f.domain, f.name) for f in model.functions] == [(op.DOMAIN, op.NAME)]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 22), ("sadnet", 1)}


def test_batch_height_and_width_are_dynamic(exported: Path) -> None:
    shape = onnx.load(exported).graph.input[0].type.tensor_type.shape.dim
    assert [bool(d.dim_param) for d in shape] == [True, False, True, True]


def test_metadata_says_which_network_it_is(exported: Path, weights: Path) -> None:
    details = json.loads(next(p.value for p in onnx.load(exported).metadata_props if p.key == METADATA_KEY))
    assert SADNetConfig(**details["config"]) == SADNetConfig()
    assert (details["precision"], details["io"], details["format"]) == ("fp32", "float32", 1)


def test_file_names_no_folder_of_the_machine_it_was_made_on(exported: Path) -> None:
    assert str(ROOT).encode() not in exported.read_bytes()
    assert b"site-packages" not in exported.read_bytes()


def test_half_exact_weights_are_stored_as_half_and_others_are_not(weights: Path, exported: Path) -> None:
    assert exported.stat().st_size < 1.05 * weights.stat().st_size
    network = lively_network()  # fp32 weights that fp16 cannot hold
    model = export_network(network, Precision.FP32, Io.FLOAT32, {})
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    name = next(n for n in stored if n.endswith("res2.conv1.weight"))
    assert stored[name].dtype == np.float32
    assert np.array_equal(stored[name], lively_network().res2.conv1.weight.detach().numpy())


def test_half_graph_computes_in_half_and_adds_the_image_in_float(exported_half: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported_half)).graph
    assert {t.data_type for t in graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.FLOAT16}
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    convolutions = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    assert {types[n.output[0]] for n in convolutions} == {onnx.TensorProto.FLOAT16}
    last = graph.node[-1]
    assert (last.op_type, types[last.output[0]]) == ("Add", onnx.TensorProto.FLOAT)


def test_8_bit_images_agree_with_float_ones(weights: Path, exported: Path) -> None:
    path = exported.with_name("lively8.onnx")
    model = export_network(load_weights(weights), Precision.FP32, Io.UINT8, {})
    path.write_bytes(model.SerializeToString())
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 16, 24)).astype(np.float32) / np.float32(255)
    with OrtEngine(path) as eight, OrtEngine(exported) as full:
        assert eight.io == "uint8"
        difference = np.abs(eight.run(pixels) - np.clip(full.run(pixels), 0, 1)).max()
    assert difference <= 0.5 / 255 + 1e-4


def test_an_8_bit_file_of_a_gray_network_passes_its_check(tmp_path: Path) -> None:
    network = lively_network(SADNetConfig(channels=1))
    path = tmp_path / "gray8.onnx"
    path.write_bytes(export_network(network, Precision.FP32, Io.UINT8, {}).SerializeToString())
    check_parity(network, path, half=False, io="uint8")


@pytest.mark.parametrize(
    "config",
    [
        SADNetConfig(variant="official", channels=1),
        SADNetConfig(offset_transfer=False),
        SADNetConfig(rsab=False, offset_transfer=False, context=False),
    ],
)
def test_other_networks_export_too(tmp_path: Path, config: SADNetConfig) -> None:
    network = lively_network(config)
    path = tmp_path / "other.onnx"
    path.write_bytes(export_network(lively_network(config), Precision.FP32, Io.FLOAT32, {}).SerializeToString())
    x = np.random.default_rng(2).random((2, config.channels, 16, 24), dtype=np.float32)
    with OrtEngine(path) as engine, torch.inference_mode():
        assert np.abs(engine.run(x) - network(torch.from_numpy(x)).numpy()).max() < 1e-4


def test_parity_check_refuses_a_file_that_computes_something_else(weights: Path, exported: Path) -> None:
    network = load_weights(weights)
    for value in (0.01, float("nan")):
        torch.nn.init.constant_(network.out.weight, value)
        with pytest.raises(ModelError, match="parity with PyTorch fp32 failed, the file, at 1 x 480x320"):
            check_parity(network, exported, half=False, io="float32")


@pytest.mark.parametrize("io", [Io.FLOAT16, Io.UINT8])
def test_activations_beyond_half_precision_are_found(weights: Path, io: Io) -> None:
    """ONNX Runtime on a CPU does not find them, because it computes in fp32."""
    network, large = load_weights(weights), load_weights(weights)
    check_half(network, ExportedNetwork(load_weights(weights), Precision.FP16, io), io)
    with torch.no_grad():  # the same network, but for activations of 1e5 inside
        for parameter in large.res1.conv1.parameters():
            parameter.mul_(2**17)
        large.res1.conv2.weight.div_(2**17)
    with pytest.raises(ModelError, match="parity with PyTorch fp32 failed, in half precision, at 1 x 37x53"):
        check_half(network, ExportedNetwork(large, Precision.FP16, io), io)


@pytest.mark.parametrize("precision", Precision)
def test_a_file_that_computes_something_else_is_not_written(
    weights: Path, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(network: SADNet, *arguments: Any) -> onnx.ModelProto:
        torch.nn.init.constant_(network.out.weight, 0.01)
        return export_network(network, *arguments)

    monkeypatch.setattr(to_onnx, "export_network", other)
    with pytest.raises(ModelError, match="parity with PyTorch fp32 failed, the file"):
        write_onnx(weights, tmp_path / "a.onnx", precision, Io.FLOAT32, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_network_beyond_half_precision_is_not_written(weights: Path, tmp_path: Path) -> None:
    network = load_weights(weights)
    with torch.no_grad():
        for parameter in network.res1.conv1.parameters():
            parameter.mul_(2**17)
        network.res1.conv2.weight.div_(2**17)
    large, target = tmp_path / "large.safetensors", tmp_path / "a.onnx"
    save_weights(network, large, dtype=torch.float32)
    with pytest.raises(ModelError, match="parity with PyTorch fp32 failed"):
        write_onnx(large, target, Precision.FP16, Io.FLOAT32, overwrite=False)
    assert list(tmp_path.iterdir()) == [large]


def test_existing_file_is_not_overwritten(weights: Path, exported: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        write_onnx(weights, exported, Precision.FP32, Io.FLOAT32, overwrite=False)
    assert exported.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"not weights", "another network"])
def test_bad_weights_are_one_line_and_leave_no_file(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "bad.safetensors"
    if content == "another network":
        from safetensors.numpy import save_file

        save_file({"conv.weight": np.zeros((3, 3), np.float32)}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    command = [sys.executable, "export/to_onnx.py", "--weights", str(path), "--output", str(tmp_path / "out.onnx")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "expected" in result.stderr
    assert str(path) in result.stderr
    assert [p for p in tmp_path.iterdir() if p != path] == []
