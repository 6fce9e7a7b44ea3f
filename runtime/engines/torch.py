"""PyTorch: weights as `train/run.py` writes them; on a GPU in half precision, with our kernels, as CUDA graphs.

Only callers that have torch import this. Beside the tests on a GPU, tests/runtime drives all but `_Cuda` with a double
of it, which puts off and reorders all that CUDA may.
"""

import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import ModelError
from plugins.launch import Precision
from runtime.engines.base import Engine, Images, size_of
from runtime.memory import pixels_in, pixels_in_host
from train.weights import load_weights

ON_WAY = 2
"""Batches on the GPU at once: while one is computed, the next is uploaded and the one before is downloaded."""
GRAPHS = 4
"""Shapes that are remembered: a picture's tiles in full batches and in the last one, upright and lying."""
WARM_UP = 5
"""Runs before those that are timed; the second one captures the graph."""

Stage = Literal["upload", "compute", "download"]


def open_weights(path: Path, threads: int | None = None, precision: Precision | None = None) -> "TorchEngine":
    """The engine of weights that `train/run.py` wrote, on a GPU where there is one; see `runtime.engines.open_engine`.

    precision: None is fp16 on a GPU and fp32 on a CPU. Raises ModelError too where the GPU has no room.
    """
    if threads:
        torch.set_num_threads(threads)
    network = load_weights(path)
    if torch.cuda.is_available():
        try:
            network = network.cuda()
        except RuntimeError as error:
            raise ModelError(f"{path}: cannot be taken to the GPU: {_first_line(error)}") from error
        precision = precision or "fp16"
    engine = TorchEngine(network.half() if precision == "fp16" else network, network.config.channels)
    engine.details = {"config": network.config.as_dict()}
    return engine


class TorchEngine(Engine):
    """A network on the device and in the type, fp32 or fp16, of its parameters.

    On a GPU results lie in pinned memory, and the first two batches of a shape take long: our kernels, then cuDNN's are
    chosen by their times, which may change last bits. `io` is float32, so that 16-bit pictures lose nothing; bytes are
    taken too and are converted beside the network, so that a quarter as much crosses the bus.

    Args:
        network: takes and gives N,C,H,W images in [0, 1], of the type of its parameters; it is put into evaluation mode
            and into channels_last order, in which it is fed. What the method `residual` of its class gives, as
            SADNet's, is added to the images in fp32.
        graphs: on a GPU, run a shape that is seen again as a CUDA graph. False is for networks that cannot be captured
            or, as `torch.compile(network, mode="max-autotune")`, bring graphs of their own.
    """

    def __init__(self, network: nn.Module, channels: int, *, graphs: bool = True) -> None:
        some = next(network.parameters(), torch.empty(0))
        self.network, self.device, self.dtype = network.eval(), some.device, some.dtype
        self.channels = channels
        # Of the class: a compiled network passes on the method of the one inside, which is not compiled.
        self._residual: Callable[[Tensor], Tensor] | None = (
            getattr(network, "residual", None) if hasattr(type(network), "residual") else None
        )
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in stubs
        self._cuda: _Cuda | None = None
        place = "CPU"
        if self.device.type == "cuda":
            self._cuda = _Cuda(self.device)
            place = torch.cuda.get_device_name(self.device)
        self.name = f"PyTorch {torch.__version__}, {place}" + (", fp16" if self.dtype == torch.float16 else "")
        self._takes_graphs = graphs
        self._graphs: dict[Any, _Graph | None] = {}  # of each shape and type, the latest used last; None: seen once
        self._lock = threading.Lock()  # of all that is queued and of the graphs

    def stream(self, batches: Iterable[Images]) -> Generator[Images]:
        # Not through `_stream`: bytes stay bytes until they are beside the network.
        yield from map(self._run, batches) if self._cuda is None else self._overlapped(self._cuda, batches)

    @torch.no_grad()
    def _run(self, images: Images) -> Images:
        """On a CPU."""
        with self._told(images):
            fed = torch.from_numpy(np.array(images, order="C")).to(self.device)
            result: Images = self._denoise(fed).cpu().numpy()
        return result

    def pixels_at_once(self) -> int | None:
        if self._cuda is None:
            return pixels_in_host()
        try:
            return pixels_in(torch.cuda.mem_get_info(self.device)[0])
        except RuntimeError:  # a GPU that is lost is told of where it is to compute
            return None

    def seconds_on_device(self, images: Images, repeat: int) -> Sequence[float] | None:
        """Without the copies to and from the graph's own memory, which batches of `stream` need."""
        if self._cuda is None:
            return None
        cuda, seconds = self._cuda, []
        with self._told(images), self._lock:
            host, device = cuda.buffers(images)

            @torch.no_grad()
            def measure() -> None:
                for _ in range(WARM_UP):
                    self._compute(cuda, device.clone())
                graph = self._graphs.get(_key(device))
                seconds.extend(cuda.seconds(graph.recorded.replay if graph else partial(self._denoise, device), repeat))

            uploaded = cuda.queue("upload", lambda: device.copy_(host, non_blocking=True))
            cuda.queue("compute", measure, after=uploaded).synchronize()
        return seconds

    def close(self) -> None:
        if self._cuda is not None:
            self._make_room(self._cuda)

    def _overlapped(self, cuda: "_Cuda", batches: Iterable[Images]) -> Iterator[Images]:
        on_way: deque[_Batch] = deque()
        try:
            for images in batches:
                on_way.append(self._queued(cuda, images))
                if len(on_way) == ON_WAY:
                    yield self._finished(on_way.popleft())
            while on_way:
                yield self._finished(on_way.popleft())
        finally:  # nobody wants the rest, but the GPU still writes to it
            for batch in on_way:
                with contextlib.suppress(RuntimeError):
                    batch.done.synchronize()

    def _queued(self, cuda: "_Cuda", images: Images) -> "_Batch":
        with self._told(images):
            try:
                return self._queue(cuda, images)
            except torch.OutOfMemoryError as error:  # the graphs of other shapes may hold what is lacking
                self._make_room(cuda, error)
            return self._queue(cuda, images)

    def _queue(self, cuda: "_Cuda", images: Images) -> "_Batch":
        host, device = cuda.buffers(images)
        with self._lock:
            uploaded = cuda.queue("upload", lambda: device.copy_(host, non_blocking=True))
            computed = cuda.queue("compute", lambda: self._compute(cuda, device), after=uploaded)
            done = cuda.queue("download", lambda: host.copy_(device, non_blocking=True), after=computed)
        return _Batch(host, device, done)

    def _finished(self, batch: "_Batch") -> Images:
        result: Images = batch.host.numpy()
        with self._told(result):
            batch.done.synchronize()
        return result

    @torch.no_grad()  # not inference_mode, in which a capture breaks later ones outside it (pytorch issue 166792)
    def _compute(self, cuda: "_Cuda", images: Tensor) -> None:
        """Denoise `images`, which are on the GPU, in place, on the current stream."""
        graph = self._graph(cuda, images) if self._takes_graphs else None
        images.copy_(self._denoise(images) if graph is None else graph.run(images))

    def _graph(self, cuda: "_Cuda", images: Tensor) -> "_Graph | None":
        """The graph of images of this shape; None the first time, which may be the only one."""
        seen = _key(images) in self._graphs
        graph = self._graphs.pop(_key(images), None)
        while len(self._graphs) >= GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        if seen and graph is None:
            beside = next((other for other in self._graphs.values() if other), None)
            fed = images.clone()
            recorded, output = cuda.capture(partial(self._denoise, fed), beside and beside.recorded.pool())
            graph = _Graph(fed, recorded, output)
        self._graphs[_key(images)] = graph
        return graph

    def _denoise(self, images: Tensor) -> Tensor:
        """Images of either kind, beside the network, to the same kind."""
        is_bytes = images.dtype == torch.uint8
        x = (images.permute(0, 3, 1, 2).float() / 255 if is_bytes else images).contiguous(
            memory_format=torch.channels_last
        )
        fed = x.to(self.dtype)
        y: Tensor = self.network(fed).float() if self._residual is None else x + self._residual(fed)
        return y.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1) if is_bytes else y

    @contextlib.contextmanager
    def _told(self, images: Images) -> Iterator[None]:
        """Make one ModelError of what PyTorch raises; smaller images can be denoised after it."""
        try:
            yield
        except RuntimeError as error:
            if self._cuda is not None:
                self._make_room(self._cuda, error)
            height, width = size_of(images)
            raise ModelError(
                f"cannot denoise {width}x{height} at once (--tile takes smaller pieces): {_first_line(error)}"
            ) from error

    def _make_room(self, cuda: "_Cuda", error: RuntimeError | None = None) -> None:
        """Give back the memory of all graphs, and of the attempt that ended in `error`."""
        with self._lock, contextlib.suppress(RuntimeError):  # of a GPU that is lost altogether
            cuda.settle()
            if error is not None:
                traceback.clear_frames(error.__traceback__)  # they hold the tensors of every layer
            self._graphs.clear()
            cuda.give_back()


@dataclass(frozen=True)
class _Batch:
    """Images on their way. Their buffers are theirs alone and serve both ways; `done`: the result is in `host`."""

    host: Tensor
    device: Tensor
    done: Any


@dataclass(frozen=True)
class _Graph:
    """The work of one shape, recorded: from `images`, which are its own, to `output`, which is so until the next run.

    All graphs share their scratch memory, and `output` may be another's scratch: they run one after another, and each
    output is copied before (safe in any order: pytorch pull request 166975).
    """

    images: Tensor
    recorded: Any
    output: Tensor

    def run(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.recorded.replay()
        return self.output


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]  # CUDA's go on about debugging


def _key(images: Tensor) -> tuple[torch.Size, torch.dtype]:
    return images.shape, images.dtype


_capturing = threading.Lock()  # PyTorch takes one capture at a time in a process


class _Cuda:
    """A GPU as the engine needs it: a stream for each stage, so that those of successive batches overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {stage: torch.cuda.Stream(device) for stage in get_args(Stage)}

    def buffers(self, images: Images) -> tuple[Tensor, Tensor]:
        """A copy of `images` in pinned memory, and room for it on the GPU."""
        dtype = torch.uint8 if images.dtype == np.uint8 else torch.float32
        host = torch.empty(images.shape, dtype=dtype, pin_memory=True)
        np.copyto(host.numpy(), images)
        # PyTorch hands memory on within a stream without a wait: what the compute stream has dropped may be in use.
        with torch.cuda.stream(self._streams["upload"]):
            return host, torch.empty(images.shape, dtype=dtype, device=self._device)

    def queue(self, stage: Stage, work: Callable[[], object], after: Any = None) -> Any:
        """Queue what `work` does on the stage's stream, behind the event `after`; returns the event of its end."""
        stream = self._streams[stage]
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            work()
            return stream.record_event()

    def capture(self, work: Callable[[], Tensor], pool: Any) -> tuple[Any, Tensor]:
        """The graph of `work`, called by work of the compute stream, and where each replay leaves its result.

        pool: of another graph of this stream, whose scratch memory it shares; None: its own.
        """
        graph = torch.cuda.CUDAGraph()
        with _capturing, _cudnn_measures():
            work()  # what is chosen by measuring, loaded or allocated at first cannot be captured
            # thread_local: another thread may allocate or wait meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=self._streams["compute"], capture_error_mode="thread_local"):
                output = work()
        return graph, output

    def seconds(self, work: Callable[[], object], repeat: int) -> list[float]:
        """Of `repeat` runs of `work`, called by work of the compute stream."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
        for start, end in events:
            start.record()
            work()
            end.record()
        self._streams["compute"].synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def settle(self) -> None:
        """Wait for all that is queued."""
        torch.cuda.synchronize(self._device)

    def give_back(self) -> None:
        """Give the memory that no tensor and no graph holds back to the GPU."""
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _cudnn_measures() -> Iterator[None]:
    """Let cuDNN time its algorithms rather than guess; worth it for a shape that comes again."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
