"""A plan in the GPU's memory, and what it takes to run it on images of one shape: context, buffers, graph."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from common.errors import ModelError, OutputError
from common.files import write_whole
from common.tensorrt_library import Backend, Log, load_library, logger
from runtime.engines.base import Size
from runtime.engines.gpu import Device, is_cuda_error
from runtime.engines.plan_file import PlanFile, rebuild

SHAPES = 4
"""How many shapes a slot keeps ready."""


class LoadedPlan:
    """A deserialised plan. Raises ModelError where the library refuses it, or it is not what its sidecar says."""

    def __init__(self, file: PlanFile) -> None:
        self.file = file
        self.backend = file.sidecar.backend
        self.trt = load_library(self.backend)
        self.log: Log = logger(self.backend)[1]
        self.engine = file.deserialize()
        self._check()
        self.scratch_bytes = int(self.engine.device_memory_size_v2)
        self.config = self.engine.create_runtime_config()
        # The work of all contexts is done one after another, so that they share what memory they need for it.
        self.config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.cache: Any = None
        if self.backend is Backend.TENSORRT_RTX:
            # It compiles better kernels for a shape while it runs, and knows when to capture them.
            self.config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.cache = self.config.create_runtime_cache()
            self._load_cache()
            self.config.set_runtime_cache(self.cache)

    @property
    def cache_path(self) -> Path:
        """Where TensorRT-RTX's compiled kernels are kept, beside the plan."""
        return self.file.path.with_name(f"{self.file.path.name}.cache")

    def context(self, size: Size, scratch: int) -> "Context":
        """A context for images of this size, whose intermediate results lie at the address `scratch`."""
        self.log.clear()
        context = self.engine.create_execution_context(self.config)
        if context is None:
            raise self.log.failure(f"cannot prepare {self.file.path} for {size[1]}x{size[0]}")
        context.set_device_memory(scratch, self.scratch_bytes)
        if not context.set_input_shape(self.file.sidecar.inputs[0].name, self.file.shape(size)):
            raise self.log.failure(f"cannot run {self.file.path} at {size[1]}x{size[0]}")
        return Context(self, context)

    def save_cache(self) -> None:
        """Keep what was compiled, where that is new; a folder that cannot be written costs time alone, next time."""
        if self.cache is None:
            return
        compiled = bytes(self.cache.serialize() or b"")
        try:
            if compiled and not (self.cache_path.exists() and self.cache_path.read_bytes() == compiled):
                write_whole(self.cache_path, compiled, overwrite=True)
        except (OSError, OutputError):
            return

    def close(self) -> None:
        """Give it back; its contexts are closed before."""
        self.cache = self.config = self.engine = None

    def _check(self) -> None:
        """Tensors are found and buffers made as the sidecar says: it must say what the plan has."""
        engine, sidecar = self.engine, self.file.sidecar
        # An engine asked of a name that it does not have logs an error and answers something.
        found = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        for mode, tensors in (("INPUT", sidecar.inputs), ("OUTPUT", sidecar.outputs)):
            expected = [tensor.name for tensor in tensors]
            names = [name for name in found if engine.get_tensor_mode(name).name == mode]
            if names != expected:
                raise self._unlike(f"{mode.lower()}s {expected}", str(names))
        types = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}
        for tensor in (*sidecar.inputs, *sidecar.outputs):
            kind = engine.get_tensor_dtype(tensor.name).name
            shape = tuple(engine.get_tensor_shape(tensor.name))
            fits = len(shape) == len(tensor.max) and all(
                side in (-1, high) for side, high in zip(shape, tensor.max, strict=True)
            )
            if kind != types[tensor.type] or not fits:
                raise self._unlike(f"{tensor.name} of {tensor.type} and {tensor.max}", f"{kind} and {shape}")

    def _unlike(self, expected: str, found: str) -> ModelError:
        return ModelError(
            f"{self.file.path}: expected {expected}, as its sidecar says, found {found}: "
            f"{rebuild(self.file.path, self.file.sidecar)}"
        )

    def _load_cache(self) -> None:
        try:
            self.cache.deserialize(self.cache_path.read_bytes())  # of another GPU or driver: False, and it stays empty
        except OSError:
            return


class Context:
    """A plan's execution context for one shape."""

    def __init__(self, plan: LoadedPlan, context: Any) -> None:
        self.plan, self._context = plan, context

    def bind(self, source: int, target: int) -> None:
        """Where the image is and where the result goes: addresses on the GPU."""
        sidecar = self.plan.file.sidecar
        for tensor, place in ((sidecar.inputs[0], source), (sidecar.outputs[0], target)):
            self.plan.log.clear()
            if not self._context.set_tensor_address(tensor.name, place):
                raise self.plan.log.failure(f"cannot put {tensor.name} at {place:#x}")

    def enqueue(self, stream: Any) -> None:
        """Queue the work. Raises ModelError in the library's words."""
        self.plan.log.clear()
        if not self._context.execute_async_v3(int(stream.handle)):
            raise self.plan.log.failure(f"cannot run {self.plan.file.path}")


class Ready:
    """A plan, ready for images of one shape: buffers at both ends, a context bound to them, and its CUDA graph.

    A TensorRT context must not change once a graph has been captured of it: there is one for each shape and each pair
    of buffers.
    """

    def __init__(self, gpu: Device, plan: LoadedPlan, size: Size, scratch: int) -> None:
        self._gpu = gpu
        shape, io = plan.file.shape(size), plan.file.io
        (self._host_in, self.sent), (self._host_out, self.received) = (gpu.pinned(shape, io) for _ in range(2))
        self._input, self._output = (gpu.memory(self.sent.nbytes) for _ in range(2))
        self._uploaded, self._computed, self.downloaded = (gpu.event() for _ in range(3))
        self._context = plan.context(size, scratch)
        self._context.bind(int(self._input.handle), int(self._output.handle))
        self._capture = plan.backend is Backend.TENSORRT
        self._graph: Any = None
        self._ran = False
        gpu.work.sync()  # the memory is there for the other streams too

    def upload(self) -> None:
        """Queue the copy of `sent` to the GPU; the work waits for it."""
        self._input.copy_from(self._host_in, stream=self._gpu.upload)
        self._gpu.upload.record(self._uploaded)
        self._gpu.work.wait(self._uploaded)

    def work(self) -> None:
        """Queue the network. The first time it runs by itself, as TensorRT wants it before a capture."""
        if self._graph is None and self._ran and self._capture:
            self._gpu.work.sync()
            self._graph = self._captured()
            self._capture = False  # what cannot be captured is not tried again
        if self._graph is None:
            self._context.enqueue(self._gpu.work)
            self._ran = True
        else:
            self._graph.launch(self._gpu.work)

    def _captured(self) -> Any:
        """The network as a CUDA graph; None where the library does things that a graph cannot hold."""
        builder = self._gpu.device.create_graph_builder()
        try:
            builder.begin_building("thread_local")  # other threads may allocate meanwhile
            self._context.enqueue(builder.stream)
            return builder.end_building().complete()
        except BaseException as error:
            builder.close()  # or this thread would stay in the capture
            if isinstance(error, ModelError | RuntimeError) or is_cuda_error(error):
                return None
            raise

    def download(self) -> None:
        """Queue the copy of the result into `received`, which is whole once the event `downloaded` has come."""
        self._gpu.work.record(self._computed)
        self._gpu.download.wait(self._computed)
        self._host_out.copy_from(self._output, stream=self._gpu.download)
        self._gpu.download.record(self.downloaded)

    def close(self) -> None:
        """Give all back, once the GPU has done what is queued."""
        if self._graph is not None:
            self._graph.close()
        for buffer in (self._input, self._output):
            buffer.close(self._gpu.work)
        del self.sent, self.received  # arrays over what goes now
        for buffer in (self._host_in, self._host_out):
            buffer.close()


class Slot:
    """Room for one image on its way: what is ready for each of the shapes that came last."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._ready: OrderedDict[tuple[LoadedPlan, Size], Ready] = OrderedDict()

    def ready(self, plan: LoadedPlan, size: Size, scratch: int) -> Ready:
        """Prepared now or before; the shape that was not asked for longest goes where there are too many."""
        key = (plan, size)
        if key not in self._ready:
            while len(self._ready) >= SHAPES:
                self._ready.popitem(last=False)[1].close()
            self._ready[key] = Ready(self._gpu, plan, size, scratch)
        self._ready.move_to_end(key)
        return self._ready[key]

    def clear(self) -> None:
        """Give back all that is ready."""
        while self._ready:
            self._ready.popitem()[1].close()
