"""The engine of plans, on a GPU that is a double: order of transfers and work, sizes, threads, and what is refused."""

import json
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import InputError, ModelError, OutputError
from common.files import sha256
from runtime import Denoiser
from runtime.engines import open_engine
from runtime.engines.base import Images
from runtime.engines.loaded_plan import SHAPES, Ready
from runtime.engines.tensorrt import ON_WAY, TensorRTEngine
from tests.runtime.gpu_double import SCRATCH, World, inverted, machine, write_plan

SMALL, LARGE = (64, 96), (128, 160)


def images(count: int, size: tuple[int, int], io: str = "float32", seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    if io == "uint8":
        return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return rng.random((count, 3, *size), dtype=np.float32).astype(io)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plans of three sizes."""
    write_plan(tmp_path / "large.plan", LARGE, LARGE)
    write_plan(tmp_path / "range.plan", (8, 8), (96, 96))
    write_plan(tmp_path / "small.plan", SMALL, SMALL)
    return tmp_path


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batches=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([SMALL, LARGE, (8, 16), (96, 40)])), max_size=8),
    backend=st.sampled_from(["tensorrt", "tensorrt_rtx"]),
    io=st.sampled_from(["float32", "float16", "uint8"]),
)
def test_every_image_is_denoised_in_its_turn(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    batches: list[tuple[int, tuple[int, int]]],
    backend: str,
    io: str,
) -> None:
    folder = tmp_path_factory.mktemp("plans")
    sizes = (("large", LARGE, LARGE), ("range", (8, 8), (96, 96)), ("small", SMALL, SMALL))
    name = backend.replace("_", "-")
    paths = [write_plan(folder / f"{n}.plan", least, most, io=io, backend=name) for n, least, most in sizes]
    kind = "uint8" if io == "uint8" else "float32"
    given = [images(count, size, kind, seed=i) for i, (count, size) in enumerate(batches)]
    world = World(seed)
    with machine(world, backend=backend), TensorRTEngine(paths) as engine:
        assert engine.io == io
        results = list(engine.stream(iter(given)))
    assert [result.shape for result in results] == [batch.shape for batch in given]
    for result, batch in zip(results, given, strict=True):
        np.testing.assert_allclose(result, inverted(batch), atol=1e-3)
    assert not world.memory  # all was given back


def test_one_image_is_uploaded_while_another_is_computed(folder: Path) -> None:
    """The second image is asked for before the first is waited for, the third only once the first is taken."""
    asked: list[int] = []

    def source() -> Iterator[Images]:
        for index in range(4):
            asked.append(index)
            yield images(1, SMALL, seed=index)

    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        stream = engine.stream(source())
        assert not asked
        next(stream)
        assert asked == [0, 1]
        next(stream)
        assert asked == [0, 1, 2]
        stream.close()
        np.testing.assert_allclose(engine.run(images(1, SMALL)), 1 - images(1, SMALL), atol=1e-6)


@pytest.mark.parametrize(("backend", "captures"), [("tensorrt", 2), ("tensorrt_rtx", 0)])
def test_one_graph_for_each_slot_and_shape(folder: Path, backend: str, captures: int) -> None:
    """TensorRT-RTX captures by itself; TensorRT runs a shape once without one."""
    plan = write_plan(folder / "b.plan", SMALL, SMALL, backend=backend.replace("_", "-"), compute_capabilities=["8.9"])
    world = World()
    with machine(world, backend=backend) as module, TensorRTEngine([plan]) as engine:
        engine.run(images(1, SMALL))
        assert (world.captures, world.contexts) == (0, 1)
        engine.run(images(9, SMALL))
        assert (world.captures, world.contexts) == (captures, 2)
        config = module.engines[0].config
        assert getattr(config, "cuda_graph_strategy", None) == ("whole graph" if captures == 0 else None)


def test_shapes_that_were_not_asked_for_longest_go(folder: Path) -> None:
    world = World()
    with machine(world), TensorRTEngine([folder / "range.plan"]) as engine:
        held = []
        for side in range(1, 12):
            size = (8 * side, 8)
            np.testing.assert_allclose(engine.run(images(1, size)), 1 - images(1, size), atol=1e-6)
            held.append(len(world.memory))
    assert max(held) == held[-1] <= 1 + 4 * SHAPES


@pytest.mark.parametrize("seed", range(5))
def test_threads_and_interleaved_streams_share_an_engine(folder: Path, seed: int) -> None:
    with machine(World(seed)), TensorRTEngine([folder / "small.plan"]) as engine:

        def work(number: int) -> bool:
            batches = [images(2, SMALL, seed=100 * number + i) for i in range(6)]
            streams = zip(engine.stream(iter(batches)), engine.stream(iter(batches)), strict=True)
            return all(
                np.allclose(a, inverted(batch), atol=1e-6) and np.allclose(b, inverted(batch), atol=1e-6)
                for (a, b), batch in zip(streams, batches, strict=True)
            )

        if seed == 0:  # the double is not for many threads at once; the engine's locks are what is looked at
            assert work(0)
        else:
            one_at_a_time(engine, work)


def one_at_a_time(engine: TensorRTEngine, work: Callable[[int], bool]) -> None:
    """Run `work` in threads that hand the interpreter over only where they wait: the double's world has no locks."""
    world_lock = threading.RLock()
    for name in ("_started", "_finished", "_abandon"):
        original = getattr(engine, name)

        def guarded(*arguments: Any, _original: Any = original) -> Any:
            with world_lock:
                found = _original(*arguments)
                return iter(list(found)) if isinstance(found, Iterator) else found

        setattr(engine, name, guarded)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(4), timeout=60))


def test_a_stream_left_early_gives_its_slots_back(folder: Path) -> None:
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        for _ in range(5):
            stream = engine.stream(images(1, SMALL, seed=i) for i in range(5))
            next(stream)
            stream.close()
        assert len(engine._free) == len(engine._slots) <= ON_WAY


def test_a_source_that_fails_gives_its_slots_back(folder: Path) -> None:
    def source() -> Iterator[Images]:
        yield images(1, SMALL)
        raise OSError("the camera was unplugged")

    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        for _ in range(3):
            with pytest.raises(OSError, match="unplugged"):
                list(engine.stream(source()))
        assert len(engine._free) == len(engine._slots) <= ON_WAY


def test_what_the_library_says_is_told_and_the_engine_lives_on(folder: Path) -> None:
    with machine(World()) as module, TensorRTEngine([folder / "small.plan"]) as engine:
        module.engines[0].fails = True
        for _ in range(3):
            with pytest.raises(ModelError, match=r"TensorRT-RTX cannot run .*small.plan: an illegal instruction"):
                engine.run(images(2, SMALL))
        module.engines[0].fails = False
        np.testing.assert_allclose(engine.run(images(2, SMALL)), 1 - images(2, SMALL), atol=1e-6)


def test_memory_that_runs_out_is_one_line(folder: Path) -> None:
    world = World()
    with machine(world), TensorRTEngine([folder / "small.plan"]) as engine:
        world.limit = SCRATCH + 1000
        with pytest.raises(ModelError, match=r"cannot denoise 96x64 at once \(--tile .*OUT_OF_MEMORY"):
            engine.run(images(1, SMALL))
        world.limit = 1 << 32
        np.testing.assert_allclose(engine.run(images(1, SMALL)), 1 - images(1, SMALL), atol=1e-6)
    world.limit = 100
    with machine(world), pytest.raises(ModelError, match="cannot take 0 MB of the GPU's memory"):
        TensorRTEngine([folder / "small.plan"])


def test_other_errors_are_not_dressed_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        monkeypatch.setattr(engine.gpu, "pinned", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.run(images(1, SMALL))


def test_sizes_that_no_plan_takes_are_refused(folder: Path) -> None:
    """With the command that builds one."""
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        with pytest.raises(InputError) as caught:
            engine.run(images(1, LARGE))
        assert str(caught.value) == (
            f"expected a size that a plan takes, found 160x128 ({folder / 'small.plan'} takes 96x64 only): build one: "
            "python export/to_plan.py --backend tensorrt-rtx --size 160x128 --precision fp16 -- sadnet.onnx"
        )
        with pytest.raises(InputError, match="at least one image"):
            engine.run(images(0, SMALL))


def test_a_picture_goes_to_the_plan_that_suits_it(folder: Path) -> None:
    used: list[tuple[int, ...]] = []

    def network(image: NDArray[Any]) -> NDArray[Any]:
        used.append(image.shape[2:])
        return inverted(image)

    rng = np.random.default_rng(0)
    with machine(World(), network), Denoiser(folder) as denoiser:
        for height, width, expected in ((64, 96, SMALL), (60, 96, SMALL), (128, 160, LARGE), (20, 30, (24, 32))):
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            used.clear()
            np.testing.assert_array_equal(denoiser.denoise(picture), 255 - picture)
            assert set(used) == {expected}
        large = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
        np.testing.assert_array_equal(denoiser.denoise(large), 255 - large)


def test_plans_of_two_networks_are_refused(folder: Path) -> None:
    write_plan(folder / "z.plan", SMALL, SMALL, model={"weights_sha256": "2" * 64})
    with machine(World()), pytest.raises(InputError, match="expected plans of one network"):
        open_engine(folder)


def test_compiled_kernels_are_kept_beside_the_plan(folder: Path) -> None:
    plan = folder / "small.plan"
    cache = folder / "small.plan.cache"
    for expected in (b"kernels 1", b"kernels 2"):
        with machine(World()), TensorRTEngine([plan]) as engine:
            engine.run(images(1, SMALL))
        assert cache.read_bytes() == expected
    cache.write_bytes(b"of another driver")
    with machine(World()), TensorRTEngine([plan]) as engine:
        engine.run(images(1, SMALL))
    assert cache.read_bytes() == b"kernels 1"


def test_a_folder_that_cannot_be_written_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr("runtime.engines.loaded_plan.write_whole", full)
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        engine.run(images(1, SMALL))
    assert not (folder / "small.plan.cache").exists()


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_times_are_of_the_work_alone_after_warm_up(tmp_path: Path, io: str) -> None:
    """Of images of either kind."""
    plan = write_plan(tmp_path / "a.plan", SMALL, SMALL, io=io)
    with machine(World()), TensorRTEngine([plan]) as engine:
        seconds = engine.seconds_on_device(images(1, SMALL), repeat=7)
        assert len(seconds) == 7
        assert all(value > 0 for value in seconds)
        assert len(engine._free) == len(engine._slots) <= ON_WAY


class OnDevice:
    """An array of another library in the double's memory. stream: on which it is made; None: it is ready."""

    def __init__(self, world: World, array: NDArray[Any], *, version: int = 3, **changes: Any) -> None:
        world.current.add(threading.get_ident())
        self.buffer = world.take(array.nbytes)
        self.world, self.like = world, array
        world.at(self.buffer.handle, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.interface: dict[str, Any] = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.buffer.handle, False),
            "version": version,
        } | changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface

    def read(self) -> NDArray[Any]:
        return self.world.at(self.buffer.handle, self.like.nbytes).view(self.like.dtype).reshape(self.like.shape)


def read(world: World, array: Any) -> NDArray[Any]:
    interface = array.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    size = int(np.prod(interface["shape"])) * dtype.itemsize
    return np.array(world.at(interface["data"][0], size).view(dtype).reshape(interface["shape"]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("io", ["float32", "float16", "uint8"])
def test_arrays_on_the_gpu_stay_there(tmp_path: Path, seed: int, io: str) -> None:
    plan = write_plan(tmp_path / "a.plan", SMALL, SMALL, io=io)
    world, batch = World(seed), images(3, SMALL, io)
    with machine(world), TensorRTEngine([plan]) as engine:
        array = OnDevice(world, batch)
        result = engine.run_on_device(array)
        np.testing.assert_array_equal(read(world, result), inverted(batch))
        out = OnDevice(world, np.zeros_like(batch), stream=None)
        assert engine.run_on_device(array, out) is out
        np.testing.assert_array_equal(out.read(), inverted(batch))
        assert world.contexts == 1


@pytest.mark.parametrize(("version", "stream"), [(3, 1), (3, 2), (2, None), (3, "own")])
def test_the_owners_stream_is_waited_for(folder: Path, version: int, stream: Any) -> None:
    """The array is written on the owner's stream, which the double puts off for as long as it may."""
    world, batch = World(3), images(1, SMALL)
    with machine(world), TensorRTEngine([folder / "small.plan"]) as engine:
        core = engine.gpu.core
        owner = {1: core.LEGACY_DEFAULT_STREAM, 2: core.PER_THREAD_DEFAULT_STREAM, "own": engine.gpu.upload}
        array = OnDevice(world, np.zeros_like(batch), version=version)
        if stream is not None:
            array.interface["stream"] = engine.gpu.upload.handle if stream == "own" else stream
        written = owner[stream or 1]
        memory = world.at(array.buffer.handle, batch.nbytes)
        written.add(lambda: np.copyto(memory, batch.reshape(-1).view(np.uint8)))
        np.testing.assert_array_equal(read(world, engine.run_on_device(array)), 1 - batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"typestr": "<f8"}, "expected an array of float32 and four dimensions on the GPU, found float64"),
        ({"shape": (3, 64, 96)}, "four dimensions"),
        ({"shape": (1, 1, 64, 96)}, r"images of \(3, 64, 96\) on the GPU, found \(1, 1, 64, 96\)"),
        ({"shape": (0, 3, 64, 96)}, "one or more images"),
        ({"shape": (1, 3, 64, 64)}, "found 64x64"),
        ({"strides": (4 * 3 * 64 * 96, 4, 4 * 3 * 96, 12)}, "expected a contiguous array"),
    ],
)
def test_arrays_on_the_gpu_that_are_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    world = World()
    with machine(world), TensorRTEngine([folder / "small.plan"]) as engine:
        with pytest.raises(InputError, match=words):
            engine.run_on_device(OnDevice(world, images(1, SMALL), **change))
        array = OnDevice(world, images(1, SMALL))
        with pytest.raises(InputError, match="shares no memory"):
            engine.run_on_device(array, array)
        with pytest.raises(InputError, match="at multiples of 256 bytes"):
            engine.run_on_device(OnDevice(world, images(1, SMALL), data=(array.buffer.handle + 16, False)))
        read_only = OnDevice(world, images(1, SMALL), data=(0, True))
        with pytest.raises(InputError, match="read-only"):
            engine.run_on_device(OnDevice(world, images(1, SMALL)), read_only)


def test_images_that_lie_off_the_alignment_go_one_by_one(tmp_path: Path) -> None:
    """Of 40x24 bytes of three channels the second would lie where TensorRT takes none."""
    plan = write_plan(tmp_path / "a.plan", (24, 40), (24, 40), io="uint8")
    world, batch = World(), images(2, (24, 40), "uint8")
    with machine(world), TensorRTEngine([plan]) as engine:
        with pytest.raises(InputError, match="one by one"):
            engine.run_on_device(OnDevice(world, batch))
        np.testing.assert_array_equal(read(world, engine.run_on_device(OnDevice(world, batch[1:]))), 255 - batch[1:])


def test_contiguous_strides_are_taken(folder: Path) -> None:
    world, batch = World(), images(1, SMALL)
    with machine(world), TensorRTEngine([folder / "small.plan"]) as engine:
        array = OnDevice(world, batch, strides=(7, 4 * 64 * 96, 4 * 96, 4))  # of an axis of one, any
        np.testing.assert_array_equal(read(world, engine.run_on_device(array)), 1 - batch)


def test_a_plugin_library_is_loaded_before_its_plan(tmp_path: Path) -> None:
    """Once: the registry refuses a library whose plugins it knows."""
    (tmp_path / "lib.so").write_bytes(b"plugin")
    plugin = {"kind": "library", "file": "lib.so", "sha256": sha256(tmp_path / "lib.so")}
    facts: dict[str, Any] = {"backend": "tensorrt", "compute_capabilities": ["8.9"], "plugin": plugin}
    plans = [write_plan(tmp_path / f"{name}.plan", SMALL, SMALL, **facts) for name in "ab"]
    with machine(World(), backend="tensorrt") as module:
        for _ in range(2):
            with TensorRTEngine(plans):
                assert module.registry.loaded == [str((tmp_path / "lib.so").resolve())]
        (tmp_path / "lib.so").write_bytes(b"another")
        with pytest.raises(ModelError, match="expected the library that"):
            TensorRTEngine(plans)
        (tmp_path / "lib.so").unlink()
        with pytest.raises(InputError, match=r"expected the plugin's library lib\.so beside the plan"):
            TensorRTEngine(plans)


def test_streams_of_streams_and_paused_ones_wait_for_nobody(folder: Path) -> None:
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        batches = [images(1, SMALL, seed=i) for i in range(6)]
        thrice = engine.stream(engine.stream(engine.stream(iter(batches))))
        for result, batch in zip(thrice, batches, strict=True):
            np.testing.assert_allclose(result, 1 - batch, atol=1e-6)
        paused = [engine.stream(iter(batches)) for _ in range(3)]
        for stream in paused:
            next(stream)
        np.testing.assert_allclose(engine.run(batches[3]), 1 - batches[3], atol=1e-6)
        for stream in paused:
            np.testing.assert_allclose(next(stream), 1 - batches[1], atol=1e-6)
            stream.close()


def test_an_interruption_at_any_line_leaves_an_engine_that_works(folder: Path) -> None:
    batches = [images(1, SMALL, seed=i) for i in range(3)]
    place = 0
    interrupted = True
    while interrupted:
        place += 1
        lines = 0

        def trace(frame: Any, event: str, _: Any, place: int = place) -> Any:
            nonlocal lines
            if "tensorrt.py" not in frame.f_code.co_filename:
                return None
            # A block's `with` line is reported again as it is left, where no signal comes before a lock is released.
            lock = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with ")
            lines += event == "line" and not lock
            if lines == place:
                lines += 1
                raise KeyboardInterrupt
            return trace

        with machine(World(place)), TensorRTEngine([folder / "small.plan"]) as engine:
            sys.settrace(trace)
            try:
                list(engine.stream(iter(batches)))
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            np.testing.assert_allclose(engine.run(batches[1]), 1 - batches[1], atol=1e-6)
    assert place > 50


def test_what_cannot_be_captured_runs_without_a_graph(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "a.plan", SMALL, SMALL, backend="tensorrt", compute_capabilities=["8.9"])
    large = write_plan(tmp_path / "b.plan", LARGE, LARGE, backend="tensorrt", compute_capabilities=["8.9"])
    world = World()
    with machine(world, backend="tensorrt") as module, TensorRTEngine([plan, large]) as engine:
        module.engines[0].fails_in_captures = True
        for size in (SMALL, LARGE, SMALL):
            np.testing.assert_allclose(engine.run(images(5, size)), 1 - images(5, size), atol=1e-6)
        assert not world.capturing
        assert world.captures == ON_WAY  # of the other plan


def test_a_closed_engine_says_so(folder: Path) -> None:
    world = World()
    with machine(world):
        engine = TensorRTEngine([folder / "small.plan"])
        stream = engine.stream(images(1, SMALL) for _ in range(5))
        next(stream)
        engine.close()
        engine.close()
        for use in (engine.run, lambda x: engine.seconds_on_device(x, 1)):
            with pytest.raises(InputError, match="expected an open engine"):
                use(images(1, SMALL))
        with pytest.raises(InputError, match="expected an open engine"):
            next(stream)


def test_a_plan_that_is_not_as_its_sidecar_says_is_refused(folder: Path) -> None:
    """Its buffers would be too small."""
    plan = write_plan(folder / "b.plan", SMALL, SMALL, io="uint8")
    contents = json.loads(plan.read_text())
    for change in ({"type": "float32"}, {"min": [1, 128, 96, 3], "max": [1, 128, 96, 3]}):
        changed = contents | {side: [contents[side][0] | change] for side in ("inputs", "outputs")}
        plan.write_text(json.dumps(changed))
        path = folder / "b.plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"plan_sha256": sha256(plan)}))
        with machine(World()), pytest.raises(ModelError, match="as its sidecar says, found"):
            TensorRTEngine([plan])


def test_a_stream_may_change_threads(folder: Path) -> None:
    with machine(World()), TensorRTEngine([folder / "small.plan"]) as engine:
        stream = engine.stream(images(1, SMALL, seed=i) for i in range(3))
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(next, stream).result(timeout=20)
        np.testing.assert_allclose(result, 1 - images(1, SMALL, seed=1), atol=1e-6)
        stream.close()


def test_the_double_finds_what_it_is_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the engine's waits, left out, is found by some order of the queued work."""

    def without(name: str, line: Callable[[Ready], None]) -> None:
        wrong = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ready, name, line)
            for seed in range(20):
                with machine(World(seed)), TensorRTEngine([folder / "small.plan"]) as engine:
                    batches = [images(1, SMALL, seed=i) for i in range(6)]
                    try:
                        results = list(engine.stream(iter(batches)))
                        wrong += any(
                            not np.allclose(r, 1 - b, atol=1e-6) for r, b in zip(results, batches, strict=True)
                        )
                    except AssertionError:
                        wrong += 1
        assert wrong > 0, f"{name} without its wait passes"

    def upload(self: Ready) -> None:
        self._input.copy_from(self._host_in, stream=self._gpu.upload)

    def download(self: Ready) -> None:
        self._host_out.copy_from(self._output, stream=self._gpu.download)
        self._gpu.download.record(self.downloaded)

    def no_event(self: Ready) -> None:
        self._gpu.work.record(self._computed)
        self._gpu.download.wait(self._computed)
        self._host_out.copy_from(self._output, stream=self._gpu.download)

    for name, line in (("upload", upload), ("download", download), ("download", no_event)):
        without(name, line)
