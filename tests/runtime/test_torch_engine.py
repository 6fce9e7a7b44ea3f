"""PyTorch's engine: what it computes, its CUDA graphs, and its failures, on a CPU and on a double of a GPU."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import ModelError
from runtime import memory
from runtime.engines import open_engine
from runtime.engines.base import from_io, to_io
from runtime.engines.torch import GRAPHS, TorchEngine, open_weights
from tests.runtime.cuda_double import FLOATS, Invert, Policy, batch, inverted, on_double
from train.sadnet import SADNet
from train.weights import load_weights, save_weights

ASSETS = Path(__file__).resolve().parents[2] / "assets"
WEIGHTS = ASSETS / "blind_color.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What it computes


@pytest.mark.parametrize("half", [False, True])
def test_a_plain_module_runs_in_its_own_type(half: bool) -> None:
    seen: list[Any] = []
    network = Invert(lambda x: seen.extend((x.dtype, x.is_contiguous(memory_format=torch.channels_last))))
    engine = TorchEngine(network.half() if half else network, 3)
    images = batch(0, (2, 3, 8, 16))
    output = engine.run(images)
    assert seen == [torch.float16 if half else torch.float32, True]
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, 1 - images, atol=1e-3 if half else 0)
    assert ("fp16" in engine.name, "CPU" in engine.name) == (half, True)
    assert engine.seconds_on_device(images, 3) is None


def test_memory_is_that_of_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**12)
    assert TorchEngine(Invert(), 3).pixels_at_once() == memory.HOST_PIXELS
    engine, _ = on_double(Invert(), "late")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 24 * 10**9))
    assert engine.pixels_at_once() == 20 * 10**9 // memory.SHARE // memory.BYTES_A_PIXEL

    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert engine.pixels_at_once() is None


def test_the_residual_is_added_in_fp32() -> None:
    images = batch(0, (1, 3, 16, 16))
    np.testing.assert_array_equal(TorchEngine(SADNet().half(), 3).run(images), images)  # a new one's residual is 0


def test_a_compiled_network_runs_compiled() -> None:
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    network = SADNet()
    engine = TorchEngine(torch.compile(network, backend=backend), 3, graphs=False)  # type: ignore[arg-type]  # a Module
    images = batch(0, (1, 3, 16, 16))
    np.testing.assert_array_equal(engine.run(images), images)
    assert compiled


def test_bytes_become_what_their_floats_do() -> None:
    engine = TorchEngine(nn.Conv2d(3, 3, 3, padding=1), 3)
    images = batch(0, (2, 16, 24, 3), np.uint8)
    floats = engine.run(to_io(images, "float32"))
    assert floats.min() < 0 < floats.max()  # is clipped
    np.testing.assert_array_equal(engine.run(images), from_io(floats, np.dtype(np.uint8)))


def test_weights_are_channels_last_too() -> None:
    network = nn.Conv2d(3, 3, 3)
    TorchEngine(network, 3)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_is_no_longer_in_training() -> None:
    network = Invert().train()
    TorchEngine(network, 3)
    assert not network.training


def test_images_are_left_as_they_are() -> None:
    images = batch(0, (1, 3, 8, 8))
    images.flags.writeable = False
    output = TorchEngine(nn.Identity(), 3).run(images)
    output += 1
    np.testing.assert_array_equal(images, batch(0, (1, 3, 8, 8)))


def test_opens_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    network = SADNet()
    nn.init.normal_(network.out.weight, std=0.02)
    save_weights(network, tmp_path / "net.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with open_engine(tmp_path / "net.safetensors", threads=1) as engine:
        assert (engine.channels, engine.io) == (3, "float32")
        assert torch.get_num_threads() == 1
        images = batch(0, (1, 3, 16, 24))
        with torch.no_grad():
            right = load_weights(tmp_path / "net.safetensors")(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(engine.run(images), right, atol=1e-6)
    half = open_weights(tmp_path / "net.safetensors", precision="fp16").run(images)
    assert 0 < np.abs(half - right).max() < 2e-3


def test_a_full_gpu_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuda(network: nn.Module) -> None:
        raise torch.OutOfMemoryError("CUDA error: out of memory\nand how to debug it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Module, "cuda", cuda)
    with pytest.raises(ModelError, match=r"blind_color\.safetensors: cannot be taken to the GPU: .* out of memory$"):
        open_weights(WEIGHTS)


# Graphs


def test_a_shape_is_captured_when_it_comes_again() -> None:
    engine, double = on_double(Invert(), "at once")
    for shape, captured in ((0, 0), (0, 1), (1, 1), (0, 1), (1, 2), (1, 2)):
        engine.run(batch(shape, FLOATS[shape]))
        assert len(double.recorded) == captured
    assert [recorded.replays for recorded in double.recorded] == [2, 2]
    assert double.recorded[0].shared is double.recorded[1].shared


def test_bytes_and_floats_have_graphs_of_their_own() -> None:
    engine, double = on_double(Invert(), "at once")
    shape = (1, 3, 3, 3)
    for kind in (np.float32, np.uint8, np.float32, np.uint8):
        np.testing.assert_allclose(engine.run(batch(0, shape, kind)), inverted(batch(0, shape, kind)), atol=1e-6)
    assert len(double.recorded) == 2


def test_graphs_of_shapes_not_seen_for_long_are_dropped() -> None:
    engine, double = on_double(Invert(), "at once")
    for shape in [*FLOATS[: GRAPHS - 1], FLOATS[0], *FLOATS[GRAPHS - 1 : GRAPHS + 1], FLOATS[0]]:
        for _ in range(2):
            engine.run(batch(0, shape))
    assert len(engine._graphs) == GRAPHS
    assert len(double.recorded) == GRAPHS + 1  # the first shape was used again in time
    engine.run(batch(0, FLOATS[1]))  # long gone: it starts anew
    assert len(double.recorded) == GRAPHS + 1


def test_as_many_shapes_as_are_remembered_keep_their_graphs() -> None:
    engine, double = on_double(Invert(), "at once")
    first, *_, last = shapes = FLOATS[:GRAPHS]
    for shape in [*shapes, *shapes, last, first, first]:
        engine.run(batch(0, shape))
    assert len(double.recorded) == GRAPHS


def test_without_graphs_nothing_is_captured() -> None:
    engine, double = on_double(Invert(), "at once", graphs=False)
    for seed in range(3):
        np.testing.assert_allclose(engine.run(batch(seed, FLOATS[0])), 1 - batch(seed, FLOATS[0]), atol=1e-6)
    assert not double.recorded


@pytest.mark.parametrize("graphs", [True, False])
def test_what_is_timed_is_the_network_on_the_images(graphs: bool) -> None:
    fed: list[Tensor] = []
    engine, double = on_double(Invert(lambda x: fed.append(x.clone())), "late", graphs=graphs)
    images = batch(0, FLOATS[0])
    seconds = engine.seconds_on_device(images, 4)
    assert seconds is not None
    assert len(seconds) == 4
    assert min(seconds) > 0
    assert sum(recorded.replays for recorded in double.recorded) == (4 + 4 if graphs else 0)
    assert len(fed) > 4
    for x in fed:  # those that are timed, and all before
        np.testing.assert_array_equal(x.numpy(), images)
    np.testing.assert_allclose(engine.run(images), 1 - images, atol=1e-6)


# Failures


@pytest.mark.parametrize("policy", ["at once", "late", "random"])
def test_what_pytorch_raises_is_one_line(policy: Policy) -> None:
    def fail(x: Tensor) -> None:
        raise RuntimeError("CUDA error: of some kind\nand how to debug it")

    for engine in (TorchEngine(Invert(fail), 3), on_double(Invert(fail), policy)[0]):
        with pytest.raises(ModelError) as caught:
            engine.run(batch(0, FLOATS[1]))
        assert str(caught.value) == (
            "cannot denoise 16x8 at once (--tile takes smaller pieces): CUDA error: of some kind"
        )


class Greedy:
    """Runs out of memory where an image has more than `limit` pixels and `enough` does not say otherwise."""

    def __init__(self, limit: int, enough: Callable[[], bool] = lambda: False) -> None:
        self.limit, self.enough = limit, enough
        self.held: list[weakref.ref[Tensor]] = []

    def __call__(self, x: Tensor) -> None:
        layer = x.clone()
        self.held.append(weakref.ref(layer))
        if layer.shape[-2:].numel() > self.limit and not self.enough():
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_smaller_images_are_denoised_after_memory_ran_out() -> None:
    greedy = Greedy(limit=100)
    engine, double = on_double(Invert(greedy), "at once")
    small, large = batch(0, FLOATS[0]), batch(1, (1, 3, 16, 16))
    for _ in range(2):
        engine.run(small)
    gc.disable()  # what a cycle holds would be given back some time
    try:
        held: list[int] = []
        give_back = double.give_back
        double.give_back = lambda: held.append(sum(ref() is not None for ref in greedy.held)) or give_back()  # type: ignore[func-returns-value,method-assign]  # notes it first
        with pytest.raises(ModelError, match=r"cannot denoise 16x16 at once .*: CUDA out of memory\.$"):
            engine.run(large)
    finally:
        gc.enable()
    assert held == [0, 0]  # tried twice, and nothing of the network's was held when the memory was given back
    assert not engine._graphs
    for _ in range(3):
        np.testing.assert_allclose(engine.run(small), 1 - small, atol=1e-6)


def test_graphs_give_way_to_images_that_need_their_memory() -> None:
    engine, double = on_double(Invert(Greedy(100, lambda: not any(engine._graphs.values()))), "at once")
    large = batch(1, (1, 3, 16, 16))
    for images in (batch(0, FLOATS[0]), batch(0, FLOATS[0]), large):
        np.testing.assert_allclose(engine.run(images), 1 - images, atol=1e-6)
    assert double.given_back == 1


def test_a_lost_gpu_is_told_by_its_first_error() -> None:
    def fail(x: Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine, double = on_double(Invert(fail), "late")
    double.settle = lambda: fail(torch.empty(0))  # type: ignore[method-assign]  # nothing works any more
    with pytest.raises(ModelError, match="an illegal memory access"):
        list(engine.stream(batch(i, FLOATS[0]) for i in range(3)))


def test_closing_gives_the_graphs_back() -> None:
    engine, double = on_double(Invert(), "late")
    with engine:
        for _ in range(2):
            engine.run(batch(0, FLOATS[0]))
        assert engine._graphs
    assert not engine._graphs
    assert double.given_back == 1
