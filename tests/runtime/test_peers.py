"""PyTorch as others have it: torchvision's own op, and one compiled graph, with the results of our network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from common.errors import ModelError
from plugins import contenders
from runtime.engines.torch import TorchEngine
from runtime.measure import measure, picture
from runtime.peers import peers
from train.sadnet import SADNet
from train.weights import load_weights

WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "blind_color.safetensors"
EAGER = "PyTorch eager fp32"


@pytest.fixture
def op_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Types of the images that torchvision's op is given."""
    found: list[torch.dtype] = []

    def counted(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        found.append(x.dtype)
        y: torch.Tensor = torchvision.ops.deform_conv2d(x, *rest, **options)
        return y

    monkeypatch.setattr(contenders, "deform_conv2d", counted)
    return found


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What the compiler is given, which runs as it is in place of the compiled."""
    found: list[torch.fx.GraphModule] = []
    compile_ = torch.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        found.append(graph)
        return graph.forward

    def traced(function: Any, *, mode: str, **options: Any) -> Any:
        assert mode == "max-autotune"
        return compile_(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", traced)
    yield found
    torch.compiler.reset()


def test_eager_pytorch_is_the_network_with_torchvisions_op(op_calls: list[torch.dtype]) -> None:
    (peer,) = peers(WEIGHTS, compiled=False)
    images = picture(56, 40, 3)
    with peer.open() as engine, TorchEngine(load_weights(WEIGHTS), 3) as ours:
        assert engine.details == {"config": load_weights(WEIGHTS).config.as_dict()}  # which the roofline is of
        assert (peer.label, engine.io, engine.channels) == (EAGER, "float32", 3)
        found, right = engine.run(images).astype(int), ours.run(images).astype(int)
    assert np.abs(found - right).max() <= 1
    assert op_calls == [torch.float32] * 4


def test_compiled_pytorch_is_one_graph_from_bytes_to_bytes(graphs: list[torch.fx.GraphModule]) -> None:
    eager, compiled = peers(WEIGHTS, compiled=True)
    images = picture(56, 40, 3)
    with eager.open() as right, compiled.open() as engine:
        for given in (images, images[:, ::-1].copy()):
            np.testing.assert_array_equal(engine.run(given), right.run(given))
    assert len(graphs) == 1
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("deform_conv2d" in name for name in names) == 4


def test_each_size_is_compiled_and_forgotten(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    reset, resets = torch.compiler.reset, list[int]()

    def counted() -> None:
        resets.append(len(graphs))
        reset()

    monkeypatch.setattr(torch.compiler, "reset", counted)
    _, compiled = peers(WEIGHTS, compiled=True)
    for width in (24, 32):
        (result,) = measure([compiled], width, 16, 1)
        assert result.note is None
    assert resets == [1, 2]


@pytest.mark.parametrize(
    ("on_gpu", "compiled", "labels"),
    [
        (False, None, [EAGER]),
        (False, True, [EAGER, "PyTorch torch.compile fp32"]),
        (True, None, [EAGER, "PyTorch torch.compile fp16"]),
        (True, False, [EAGER]),
    ],
)
def test_which_peers_there_are(
    on_gpu: bool, compiled: bool | None, labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    assert [peer.label for peer in peers(WEIGHTS, compiled=compiled)] == labels


def test_what_cannot_be_compiled_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("no such kernel")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend=fails))
    _, compiled = peers(WEIGHTS, compiled=True)
    (result,) = measure([compiled], 16, 16, 1)
    assert result.note is not None
    assert "backend='fails' raised" in result.note


def test_a_gpu_without_room_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: SADNet, *_: object) -> SADNet:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SADNet, "to", full)
    (result,) = measure(peers(WEIGHTS, compiled=False), 16, 16, 1)
    assert result.note is not None
    assert "cannot be taken to the GPU: CUDA out of memory" in result.note


def test_weights_that_are_none_are_refused() -> None:
    with pytest.raises(ModelError, match="expected SADNet weights"):
        peers(Path("none.safetensors"))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled: bool) -> None:
    """Bytes come out as the network's in fp32; in half, where torchvision's places are rounded, nearly."""
    peer = peers(WEIGHTS, compiled=compiled)[-1]
    images = picture(480, 320, 3)
    right = TorchEngine(load_weights(WEIGHTS), 3).run(images).astype(int)
    with peer.open() as engine:
        for _ in range(3):
            difference = np.abs(engine.run(images).astype(int) - right)
            assert difference.mean() < (1 if compiled else 0.1)
        times = engine.seconds_on_device(images, 5)
    assert times is not None
    assert len(times) == 5
    assert min(times) > 0
