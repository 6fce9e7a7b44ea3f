"""The engine of plans on a real GPU, with real plans. test_tensorrt_engine.py drives its logic on a CPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from common.images import read_picture, rgb8
from common.tensorrt_library import MODULES, Backend
from export import to_plan
from export.plan_build import Sizes
from export.plan_rtx import RtxTarget
from export.plan_tensorrt import TensorRTTarget
from export.plan_types import Precision
from runtime.engines import open_engine
from runtime.engines.base import Images
from runtime.engines.tensorrt import TensorRTEngine

ASSETS = Path(__file__).resolve().parents[2] / "assets"
SMALL, LARGE = (320, 480), (480, 496)
RANGE = Sizes((64, 64), (480, 320), (496, 496))

pytestmark = pytest.mark.gpu


@pytest.fixture(
    scope="module", params=[Backend.TENSORRT_RTX, pytest.param(Backend.TENSORRT, marks=pytest.mark.tensorrt)]
)
def plans(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan of one size, and one of many."""
    pytest.importorskip(MODULES[request.param])
    folder = tmp_path_factory.mktemp("plans")
    for name, sizes in (("fixed", Sizes((480, 320), (480, 320), (480, 320))), ("range", RANGE)):
        rtx = request.param is Backend.TENSORRT_RTX
        target = RtxTarget(["current"]) if rtx else TensorRTTarget(None, folder / "timing")
        model = ASSETS / "blind_color.onnx"
        to_plan.write(model, folder / f"{name}.plan", target, Precision.FP16, sizes, overwrite=False)
    return folder


def images(count: int, size: tuple[int, int], seed: int = 0) -> Images:
    """Parts of the noisy sample photo, each another one."""
    photo = np.moveaxis(rgb8(read_picture(ASSETS / "astronaut_noisy.png")), -1, 0).astype(np.float32) / 255
    shifted = [np.roll(photo, 8 * (seed + i), axis=2)[:, : size[0], : size[1]] for i in range(count)]
    return np.ascontiguousarray(np.stack(shifted))


def test_streams_threads_and_batches_give_the_same_images(plans: Path) -> None:
    with open_engine(plans) as engine:
        expected = {size: engine.run(images(6, size)) for size in (SMALL, LARGE)}
        for size in (SMALL, LARGE, SMALL):
            streamed = np.concatenate(list(engine.stream(images(1, size, seed=i) for i in range(6))))
            np.testing.assert_array_equal(streamed, expected[size])
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: engine.run(images(6, SMALL)), range(8), timeout=120):
                np.testing.assert_array_equal(found, expected[SMALL])


def test_arrays_of_pytorch_stay_on_the_gpu(plans: Path) -> None:
    torch = pytest.importorskip("torch")
    with open_engine(plans) as engine:
        assert isinstance(engine, TensorRTEngine)
        batch = images(2, SMALL)
        given, out = torch.from_numpy(batch).cuda(), torch.empty(batch.shape, device="cuda")
        torch.cuda.synchronize()
        made = torch.as_tensor(engine.run_on_device(given), device="cuda")
        assert engine.run_on_device(given, out) is out
        for result in (made, out):
            np.testing.assert_array_equal(torch.as_tensor(result).cpu().numpy(), engine.run(batch))


def test_times_memory_and_cache(plans: Path) -> None:
    with open_engine(plans) as engine:
        seconds = engine.seconds_on_device(images(1, SMALL), repeat=20)
        assert seconds is not None
        print(f"{engine.name}: {np.median(seconds) * 1e3:.3f} ms at 480x320, engine only")
        assert 0 < min(seconds) < 1
        rtx = engine.name.startswith("TensorRT-RTX")
    assert (plans / "fixed.plan.cache").exists() == rtx


def test_another_size_is_refused(plans: Path) -> None:
    with TensorRTEngine([plans / "fixed.plan"]) as engine, pytest.raises(InputError, match="takes 480x320 only"):
        engine.run(images(1, (64, 64)))
