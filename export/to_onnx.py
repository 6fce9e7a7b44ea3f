"""Export weights to one ONNX file and check that it computes what PyTorch does.

    python export/to_onnx.py --weights assets/blind_color.safetensors
    python export/to_onnx.py --weights assets/blind_color.safetensors --precision fp16 --output sadnet_fp16.onnx

The file takes any batch size and heights and widths that are multiples of 8. The deformable convolution stays one
node, `sadnet::ModulatedDeformConv2d`, whose function body of standard ops ONNX Runtime inlines. The metadata entry
`sadnet` (JSON) names the format, the network's configuration, precision and io, and the weights' SHA-256.
"""

import importlib
import io as streams
import json
import logging
import warnings
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common import cli
from common.contract import FORMAT, METADATA_KEY
from common.errors import InputError
from common.files import sha256, whole_file
from common.padding import MULTIPLE

with cli.needs("dev", __name__):
    import onnx
    import torch
    from onnx import helper, numpy_helper
    from torch import Tensor, nn

    from export.parity import check_half, check_parity
    from plugins import onnx_op
    from train.sadnet import SADNet
    from train.weights import load_weights

    for name in ("onnxscript", "onnxruntime"):  # wanted late, by the exporter and the parity check: told at once
        importlib.import_module(name)


class Precision(StrEnum):
    """Type of weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"


class Io(StrEnum):
    """The graph's images: float types are N,C,H,W in [0, 1], uint8 is N,H,W,C in 0..255, rounded in the graph."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


TORCH_TYPES = {Io.FLOAT32: torch.float32, Io.FLOAT16: torch.float16, Io.UINT8: torch.uint8}


class ExportedNetwork(nn.Module):
    """What the graph computes around the network: conversions of the images, and the last addition in fp32."""

    def __init__(self, network: SADNet, precision: Precision, io: Io) -> None:
        super().__init__()
        self.network = network.half() if precision is Precision.FP16 else network
        self.precision, self.io = precision, io

    def forward(self, images: Tensor) -> Tensor:
        """Images in and out as `io` says."""
        x = images.float()
        if self.io is Io.UINT8:
            x = x.permute(0, 3, 1, 2) / 255
        y = x + self.network.residual(x.half() if self.precision is Precision.FP16 else x).float()
        if self.io is Io.UINT8:
            return (y.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return y.to(images.dtype)


def export_network(network: SADNet, precision: Precision, io: Io, details: dict[str, Any]) -> onnx.ModelProto:
    """The ONNX model of `network` (which it changes to half precision for fp16), `details` in its metadata."""
    batch, high, wide = (
        torch.export.Dim(name, min=1, max=most) for name, most in (("n", 4096), ("h8", 4096), ("w8", 4096))
    )
    channels = network.config.channels
    if io is Io.UINT8:
        example = torch.zeros(2, 5 * MULTIPLE, 6 * MULTIPLE, channels, dtype=torch.uint8)
        dynamic = {0: batch, 1: MULTIPLE * high, 2: MULTIPLE * wide}
    else:
        example = torch.zeros(2, channels, 5 * MULTIPLE, 6 * MULTIPLE, dtype=TORCH_TYPES[io])
        dynamic = {0: batch, 2: MULTIPLE * high, 3: MULTIPLE * wide}
    with warnings.catch_warnings(), redirect_stdout(streams.StringIO()):  # the exporter's chatter
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            ExportedNetwork(network, precision, io).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=onnx_op.OPSET,
            dynamic_shapes=(dynamic,),
            input_names=["noisy"],
            output_names=["denoised"],
            custom_translation_table={torch.ops.sadnet.modulated_deform_conv2d.default: onnx_op.translation()},
        )
    assert program is not None
    model = program.model_proto
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        part.ClearField("metadata_props")  # the exporter's traces name this machine's folders
    model.functions.append(onnx_op.deform_conv_body())
    store_as_half(model)
    model.producer_name, model.producer_version = "sadnet-trt", ""
    model.doc_string = "SADNet image denoiser (Chang et al., ECCV 2020)"
    details = {"format": FORMAT, "config": network.config.as_dict(), "precision": precision, "io": io, **details}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(details)})
    onnx.checker.check_model(model)
    return model


def store_as_half(model: onnx.ModelProto) -> None:
    """Keep fp32 weights that fp16 holds exactly (released ones) as fp16 behind Casts, folded at load: half the file."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size > 1 and np.array_equal(half.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


app = cli.application("Export SADNet weights to ONNX, with a parity check against PyTorch fp32.")


@app.command()
def main(
    weights: Annotated[Path, typer.Option(help="safetensors file that train/run.py wrote")],
    precision: Annotated[Precision, typer.Option(help="weights and activations")] = Precision.FP32,
    io: Annotated[Io, typer.Option(help="images of the graph; uint8 is N,H,W,C")] = Io.FLOAT32,
    output: Annotated[Path, typer.Option(help="the ONNX file")] = Path("sadnet.onnx"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing output")] = False,
) -> None:
    """Write the ONNX file, once it is shown to compute what PyTorch fp32 does."""
    write_onnx(weights, output, precision, io, overwrite=overwrite)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {precision}, images {io}, opset {onnx_op.OPSET}")


def write_onnx(weights: Path, output: Path, precision: Precision, io: Io, *, overwrite: bool) -> None:
    """Export the weights file to `output`, parity checked before the file appears.

    Raises InputError, ModelError or OutputError; then nothing is written.
    """
    if output.suffix != ".onnx":
        raise InputError(f"--output: expected a name ending in .onnx, found {output}")
    with whole_file(output, overwrite=overwrite) as temporary:
        network = load_weights(weights)
        model = export_network(load_weights(weights), precision, io, {"weights_sha256": sha256(weights)})
        temporary.write_bytes(model.SerializeToString())
        half = precision is Precision.FP16
        check_parity(network, temporary, half, io)
        if half:
            check_half(network, ExportedNetwork(load_weights(weights), precision, io).eval(), io)


if __name__ == "__main__":
    cli.run(app)
