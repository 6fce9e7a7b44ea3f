"""The engine of plans, on a GPU that is a double: order of transfers and work, sizes, threads, kernels kept."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import InputError, ModelError
from common.files import sha256
from runtime import Denoiser
from runtime.engines.base import Images, to_io
from runtime.engines.loaded_plan import SHAPES, Ready, Slot
from runtime.engines.plan_file import _libraries
from runtime.engines.tensorrt import ON_WAY, WARM_UP, TensorRTEngine
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import LARGE, SMALL, images, inverted, machine, write_plan


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


def test_one_image_is_uploaded_while_another_is_computed(plans: Path) -> None:
    """The second image is asked for before the first is waited for, the third only once the first is taken."""
    asked: list[int] = []

    def source() -> Iterator[Images]:
        for index in range(4):
            asked.append(index)
            yield images(1, SMALL, seed=index)

    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        stream = engine.stream(source())
        assert not asked
        next(stream)
        assert asked == [0, 1]
        next(stream)
        assert asked == [0, 1, 2]
        stream.close()
        np.testing.assert_allclose(engine.run(images(1, SMALL)), 1 - images(1, SMALL), atol=1e-6)


@pytest.mark.parametrize(("backend", "captures"), [("tensorrt", 2), ("tensorrt_rtx", 0)])
def test_one_graph_for_each_slot_and_shape(plans: Path, backend: str, captures: int) -> None:
    """TensorRT-RTX captures by itself; TensorRT runs a shape once without one."""
    plan = write_plan(plans / "b.plan", SMALL, SMALL, backend=backend.replace("_", "-"), compute_capabilities=["8.9"])
    world = World()
    with machine(world, backend=backend) as module, TensorRTEngine([plan]) as engine:
        engine.run(images(1, SMALL))
        assert (world.captures, world.contexts) == (0, 1)
        engine.run(images(9, SMALL))
        assert (world.captures, world.contexts) == (captures, 2)
        config = module.engines[0].config
        assert getattr(config, "cuda_graph_strategy", None) == ("whole graph" if captures == 0 else None)


def test_shapes_that_were_not_asked_for_longest_go(plans: Path) -> None:
    world = World()
    with machine(world), TensorRTEngine([plans / "range.plan"]) as engine:
        held = []
        for side in range(1, 12):
            size = (8 * side, 8)
            np.testing.assert_allclose(engine.run(images(1, size)), 1 - images(1, size), atol=1e-6)
            held.append(len(world.memory))
    assert max(held) == held[-1] <= 1 + 4 * SHAPES


def test_a_shape_that_is_asked_for_again_stays(plans: Path) -> None:
    world, sizes = World(), [(8 * side, 8) for side in range(1, SHAPES + 2)]
    with machine(world), TensorRTEngine([plans / "range.plan"]) as engine:
        for size in (*sizes[:SHAPES], sizes[0], sizes[-1]):
            engine.run(images(1, size))
        made = world.contexts
        engine.run(images(1, sizes[0]))
        assert world.contexts == made


@pytest.mark.parametrize("seed", range(5))
def test_threads_and_interleaved_streams_share_an_engine(plans: Path, seed: int) -> None:
    with machine(World(seed)), TensorRTEngine([plans / "small.plan"]) as engine:

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


def test_a_picture_goes_to_the_plan_that_suits_it(plans: Path) -> None:
    used: list[tuple[int, ...]] = []

    def network(image: NDArray[Any]) -> NDArray[Any]:
        used.append(image.shape[2:])
        return inverted(image)

    rng = np.random.default_rng(0)
    with machine(World(), network), Denoiser(plans) as denoiser:
        for height, width, expected in ((64, 96, SMALL), (60, 96, SMALL), (128, 160, LARGE), (20, 30, (24, 32))):
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            used.clear()
            np.testing.assert_array_equal(denoiser.denoise(picture), 255 - picture)
            assert set(used) == {expected}
        large = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
        np.testing.assert_array_equal(denoiser.denoise(large), 255 - large)


def test_compiled_kernels_are_kept_beside_the_plan(plans: Path) -> None:
    plan = plans / "small.plan"
    cache = plans / "small.plan.cache"
    for expected in (b"kernels 1", b"kernels 2"):
        with machine(World()), TensorRTEngine([plan]) as engine:
            engine.run(images(1, SMALL))
        assert cache.read_bytes() == expected
    cache.write_bytes(b"of another driver")
    with machine(World()), TensorRTEngine([plan]) as engine:
        engine.run(images(1, SMALL))
    assert cache.read_bytes() == b"kernels 1"


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_times_are_of_the_work_alone_after_warm_up(tmp_path: Path, io: str) -> None:
    """Of images of either kind."""
    plan = write_plan(tmp_path / "a.plan", SMALL, SMALL, io=io)
    world, given, runs = World(), images(1, SMALL), list[Images]()

    def network(image: Images) -> Images:
        runs.append(image.copy())
        world.now += 1000 if len(runs) <= WARM_UP else 50  # milliseconds; the first ones compile
        return inverted(image)

    with machine(world, network), TensorRTEngine([plan]) as engine:
        seconds = engine.seconds_on_device(given, repeat=7)
        assert len(engine._free) == len(engine._slots) <= ON_WAY
    assert len(runs) == WARM_UP + 7
    assert all(np.array_equal(run, to_io(given, engine.io)) for run in runs)
    np.testing.assert_allclose(seconds, [0.053] * 7, atol=1e-9)  # with the double's own three steps


def test_a_slot_is_free_once_its_result_is_taken(plans: Path) -> None:
    class Taken(deque[Slot]):
        def append(self, slot: Slot) -> None:  # another thread takes it at once
            for ready in slot._ready.values():
                ready.received.fill(7)
            super().append(slot)

    batch = images(4, SMALL)
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        engine._free = Taken()
        np.testing.assert_allclose(engine.run(batch), 1 - batch, atol=1e-6)


def test_a_plan_never_runs_on_another_ones_plugin_library(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"backend": "tensorrt", "compute_capabilities": ["8.9"]}
    plans = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lib.so").write_bytes(b"one" if name != "b" else b"another")
        plugin = {"kind": "library", "file": "lib.so", "sha256": sha256(tmp_path / name / "lib.so")}
        plans.append(write_plan(tmp_path / name / "x.plan", SMALL, SMALL, plugin=plugin, **facts))
    with machine(World(), backend="tensorrt"):
        TensorRTEngine([plans[0]]).close()
        with pytest.raises(ModelError, match=r"b/lib\.so, found another loaded by this process before"):
            TensorRTEngine([plans[1]])
        TensorRTEngine([plans[2]]).close()  # a copy of the first
    _libraries.clear()
    with machine(World(), backend="tensorrt") as module:
        module.registry.load_library(str(tmp_path / "b" / "lib.so"))  # by a program that knows what it does
        TensorRTEngine([plans[1]]).close()


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


def test_streams_of_streams_and_paused_ones_wait_for_nobody(plans: Path) -> None:
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
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


def test_a_stream_may_change_threads(plans: Path) -> None:
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        stream = engine.stream(images(1, SMALL, seed=i) for i in range(3))
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(next, stream).result(timeout=20)
        np.testing.assert_allclose(result, 1 - images(1, SMALL, seed=1), atol=1e-6)
        stream.close()


def test_the_double_finds_what_it_is_for(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the engine's waits, left out, is found by some order of the queued work."""

    def without(name: str, line: Callable[[Ready], None]) -> None:
        wrong = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ready, name, line)
            for seed in range(20):
                with machine(World(seed)), TensorRTEngine([plans / "small.plan"]) as engine:
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
