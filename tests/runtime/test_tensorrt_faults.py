"""The engine of plans where something fails: what is told, and that it lives on."""

import itertools
import json
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError, ModelError, OutputError
from common.files import sha256
from runtime.engines import open_engine
from runtime.engines.base import Images
from runtime.engines.loaded_plan import SHAPES
from runtime.engines.tensorrt import ON_WAY, TensorRTEngine
from tests.runtime.gpu_double import World
from tests.runtime.tensorrt_double import LARGE, SCRATCH, SMALL, images, machine, write_plan


def test_a_stream_left_early_gives_its_slots_back(plans: Path) -> None:
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        for _ in range(5):
            stream = engine.stream(images(1, SMALL, seed=i) for i in range(5))
            next(stream)
            stream.close()
        assert len(engine._free) == len(engine._slots) <= ON_WAY


def test_a_source_that_fails_gives_its_slots_back(plans: Path) -> None:
    def source() -> Iterator[Images]:
        yield images(1, SMALL)
        raise OSError("the camera was unplugged")

    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        for _ in range(3):
            with pytest.raises(OSError, match="unplugged"):
                list(engine.stream(source()))
        assert len(engine._free) == len(engine._slots) <= ON_WAY


def test_buffers_of_what_failed_are_given_back_once_nothing_touches_them(plans: Path) -> None:
    """Other shapes take their place while the GPU may still be at it."""

    def source(size: tuple[int, int]) -> Iterator[Images]:
        yield images(1, size)
        raise OSError("the camera was unplugged")

    world = World()
    with machine(world), TensorRTEngine([plans / "range.plan"]) as engine:
        world.late = [engine.gpu.download]
        for side in range(1, SHAPES + 2):
            with pytest.raises(OSError, match="unplugged"):
                list(engine.stream(source((8 * side, 8))))
        np.testing.assert_allclose(engine.run(images(1, (8, 8))), 1 - images(1, (8, 8)), atol=1e-6)


def test_what_the_library_says_is_told_and_the_engine_lives_on(plans: Path) -> None:
    with machine(World()) as module, TensorRTEngine([plans / "small.plan"]) as engine:
        module.engines[0].fails = True
        for _ in range(3):
            with pytest.raises(ModelError, match=r"TensorRT-RTX cannot run .*small.plan: an illegal instruction"):
                engine.run(images(2, SMALL))
        module.engines[0].fails = False
        np.testing.assert_allclose(engine.run(images(2, SMALL)), 1 - images(2, SMALL), atol=1e-6)


def test_memory_that_runs_out_is_one_line(plans: Path) -> None:
    world = World()
    with machine(world), TensorRTEngine([plans / "small.plan"]) as engine:
        world.limit = SCRATCH + 1000
        with pytest.raises(ModelError, match=r"cannot denoise 96x64 at once \(--tile .*OUT_OF_MEMORY"):
            engine.run(images(1, SMALL))
        world.limit = 1 << 32
        np.testing.assert_allclose(engine.run(images(1, SMALL)), 1 - images(1, SMALL), atol=1e-6)
    world.limit = 100
    with machine(world), pytest.raises(ModelError, match="cannot take 0 MB of the GPU's memory"):
        TensorRTEngine([plans / "small.plan"])


def test_other_errors_are_not_dressed_up(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        monkeypatch.setattr(engine.gpu, "pinned", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.run(images(1, SMALL))


def test_sizes_that_no_plan_takes_are_refused(plans: Path) -> None:
    """With the command that builds one."""
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        with pytest.raises(InputError) as caught:
            engine.run(images(1, LARGE))
        assert str(caught.value) == (
            f"expected a size that a plan takes, found 160x128 ({plans / 'small.plan'} takes 96x64 only): build one: "
            "python export/to_plan.py --backend tensorrt-rtx --size 160x128 --precision fp16 -- sadnet.onnx"
        )
        with pytest.raises(InputError, match="at least one image"):
            engine.run(images(0, SMALL))


def test_plans_of_two_networks_are_refused(plans: Path) -> None:
    write_plan(plans / "z.plan", SMALL, SMALL, model={"weights_sha256": "2" * 64})
    with machine(World()), pytest.raises(InputError, match="expected plans of one network"):
        open_engine(plans)


def test_a_folder_that_cannot_be_written_keeps_nothing(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr("runtime.engines.loaded_plan.write_whole", full)
    with machine(World()), TensorRTEngine([plans / "small.plan"]) as engine:
        engine.run(images(1, SMALL))
    assert not (plans / "small.plan.cache").exists()


def test_an_interruption_at_any_line_leaves_an_engine_that_works(plans: Path) -> None:
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

        with machine(World(place)), TensorRTEngine([plans / "small.plan"]) as engine:
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
        streams = len(world.streams)  # each try makes one
        engine.run(images(5, SMALL))
        assert len(world.streams) == streams


def test_a_closed_engine_says_so(plans: Path) -> None:
    world = World()
    with machine(world):
        engine = TensorRTEngine([plans / "small.plan"])
        stream = engine.stream(images(1, SMALL) for _ in range(5))
        next(stream)
        engine.close()
        engine.close()
        for use in (engine.run, lambda x: engine.seconds_on_device(x, 1)):
            with pytest.raises(InputError, match="expected an open engine"):
                use(images(1, SMALL))
        with pytest.raises(InputError, match="expected an open engine"):
            next(stream)


def test_a_plan_that_is_not_as_its_sidecar_says_is_refused(plans: Path) -> None:
    """The input's buffer or the output's would be too small, none of the name, of the other end, or one too many."""
    plan = write_plan(plans / "b.plan", SMALL, SMALL, io="uint8")
    contents = json.loads(plan.read_text())
    changes = (
        {"type": "float32"},
        {"min": [1, 128, 96, 3], "max": [1, 128, 96, 3]},
        {"name": ""},
        {"name": "another"},
    )
    plans_contents = [
        {side: [contents[side][0] | change]} for side, change in itertools.product(("inputs", "outputs"), changes)
    ]
    plans_contents += [
        {"inputs": contents["outputs"], "outputs": contents["inputs"]},
        {"outputs": [*contents["outputs"], contents["outputs"][0] | {"name": "another"}]},
    ]
    for changed in plans_contents:
        plan.write_text(json.dumps(contents | changed))
        path = plans / "b.plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"plan_sha256": sha256(plan)}))
        with machine(World()), pytest.raises(ModelError, match="as its sidecar says, found"):
            TensorRTEngine([plan])
