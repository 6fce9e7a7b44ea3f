"""PyTorch's engine: batches on their way, on a double that keeps no order but what it must, and on a GPU."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.engines.base import Images
from runtime.engines.torch import TorchEngine, _Cuda
from tests.runtime.cuda_double import FLOATS, Invert, batch, inverted, on_double

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
Make = Callable[..., TorchEngine]


@pytest.fixture(params=["at once", "late", "random", GPU])
def make(request: pytest.FixtureRequest) -> Make:
    """An engine of a network, on one GPU or another."""

    def make(network: nn.Module) -> TorchEngine:
        return TorchEngine(network.cuda(), 3) if request.param == "cuda" else on_double(network, request.param)[0]

    return make


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_stream_gives_what_run_gives(make: Make, kind: type) -> None:
    engine = make(Invert())
    shapes = [FLOATS[i] if kind is np.float32 else (1, *FLOATS[i][2:], 3) for i in (0, 1, 0, 0, 2, 1, 3, 0, 4, 5, 3, 0)]
    given = [batch(i, shape, kind) for i, shape in enumerate(shapes)]
    results = list(engine.stream(iter(given)))  # kept to the end: none may be written again
    for images, result in zip(given, results, strict=True):
        assert result.dtype == images.dtype
        np.testing.assert_allclose(result, inverted(images), atol=1e-6)
        np.testing.assert_array_equal(engine.run(images), result)


@pytest.mark.parametrize("shapes", [1, 2])
def test_no_order_of_the_gpu_changes_a_result(shapes: int) -> None:
    for seed in range(100):
        engine, double = on_double(Invert(), "random", seed)
        given = [batch(i, FLOATS[i % shapes]) for i in range(8)]
        for images, result in zip(given, engine.stream(given), strict=True):
            np.testing.assert_allclose(result, 1 - images, atol=1e-6)
        assert not any(double.waiting.values())


def test_the_next_batch_is_taken_before_a_result_is_given() -> None:
    engine, _ = on_double(Invert(), "late")
    taken: list[int] = []
    results = engine.stream(taken.append(i) or batch(i, FLOATS[0]) for i in range(4))  # type: ignore[func-returns-value]  # the list notes it
    counts = [len(taken) for _ in results]
    assert counts == [2, 3, 4, 4]


def test_two_streams_can_be_read_in_turn(make: Make) -> None:
    engine = make(Invert())
    first, second = ([batch(i, FLOATS[i % 2]) for i in range(start, start + 6)] for start in (0, 100))
    for i, results in enumerate(zip(engine.stream(first), engine.stream(second), strict=True)):
        for images, result in zip((first[i], second[i]), results, strict=True):
            np.testing.assert_allclose(result, 1 - images, atol=1e-6)


def test_threads_get_their_own_results(make: Make) -> None:
    engine, wrong = make(Invert()), []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        given = [batch(100 * seed + i, FLOATS[i % 2]) for i in range(8)]
        start.wait()
        for images, result in zip(given, engine.stream(given), strict=True):
            wrong.append(float(np.abs(result - (1 - images)).max()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 32
    assert all(difference < 1e-6 for difference in wrong)


def test_a_stream_that_is_left_early_waits_for_the_gpu() -> None:
    engine, double = on_double(Invert(), "late")
    with contextlib.closing(engine.stream(batch(i, FLOATS[0]) for i in range(9))) as results:
        next(results)
        assert any(double.waiting.values())
    assert not any(double.waiting.values())
    np.testing.assert_allclose(engine.run(batch(7, FLOATS[0])), 1 - batch(7, FLOATS[0]), atol=1e-6)


def test_a_failing_source_keeps_its_own_error() -> None:
    engine, double = on_double(Invert(), "late")

    def source() -> Iterator[Images]:
        yield batch(0, FLOATS[0])
        raise RuntimeError("no more frames")

    with pytest.raises(RuntimeError, match="no more frames"):
        list(engine.stream(source()))
    assert not any(double.waiting.values())


# The calls of CUDA themselves


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `_Cuda` calls of torch.cuda, which here does nothing but note it."""
    noted: list[Any] = []
    capture = inspect.signature(torch.cuda.graph)

    @contextlib.contextmanager
    def within(*what: Any) -> Iterator[None]:
        noted.append(("in", *what))
        yield
        noted.append(("out", *what))

    class Stream:
        def __init__(self, device: Any) -> None:
            self.number = sum(call == "stream" for call in noted)
            noted.append("stream")

        def wait_event(self, event: Any) -> None:
            noted.append(("wait", self.number, event))

        def record_event(self) -> str:
            noted.append(("record", self.number))
            return f"end on {self.number}"

    def graph(*args: Any, **options: Any) -> Any:
        values = capture.bind(*args, **options).arguments
        return within("capture", values["stream"].number, values["pool"], values["capture_error_mode"])

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.number))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return noted


def test_work_is_queued_between_the_event_it_waits_for_and_its_own(calls: list[Any]) -> None:
    cuda = _Cuda(torch.device("cuda"))
    calls.clear()
    uploaded = cuda.queue("upload", lambda: calls.append("copy"))
    cuda.queue("compute", lambda: calls.append("compute"), after=uploaded)
    upload = [("in", 0), "copy", ("record", 0), ("out", 0)]
    assert calls == [*upload, ("in", 1), ("wait", 1, "end on 0"), "compute", ("record", 1), ("out", 1)]


def test_a_capture_comes_after_a_run_that_cudnn_measures(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cuda = _Cuda(torch.device("cuda"))
    calls.clear()

    def work() -> Tensor:
        calls.append(torch.backends.cudnn.benchmark)
        return torch.ones(1)

    cuda.capture(work, "a pool")
    capture = ("capture", 1, "a pool", "thread_local")
    assert calls == [True, ("in", *capture), True, ("out", *capture)]
    with pytest.raises(ZeroDivisionError):
        cuda.capture(lambda: torch.ones(1 // 0), None)
    assert not torch.backends.cudnn.benchmark
