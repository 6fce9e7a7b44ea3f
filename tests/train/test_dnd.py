"""DND's submission, from a data set made small in its layout: MATLAB's transposed matrices and references."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py  # type: ignore[import-untyped]  # h5py has no annotations
import numpy as np
import pytest
from scipy.io import loadmat, whosmat  # type: ignore[import-untyped]  # nor has scipy

from common import cli
from common.errors import InputError
from train import dnd

ENGINE = Path(__file__).resolve().parents[2] / "assets/blind_color.onnx"
SIZE = 8
"""Of a box in the small data set; the real one's have 512."""


def image(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(index).random((24, 32, 3), np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dnd_2017")
    (folder / "images_srgb").mkdir()
    for index in range(1, 51):
        with h5py.File(folder / f"images_srgb/{index:04d}.mat", "w") as file:
            file["InoisySRGB"] = image(index).T
    with h5py.File(folder / "info.mat", "w") as file:
        references = []
        for index in range(50):
            top_left = np.array([[1 + (index + box) % 17, 1 + (index + 2 * box) % 25] for box in range(20)], float)
            file[f"#refs#/{index}"] = np.concatenate([top_left, top_left + SIZE - 1], axis=1).T
            references.append(file[f"#refs#/{index}"].ref)
        file.create_dataset("info/boundingboxes", data=np.array([references], h5py.ref_dtype))
    return folder


def submit(data: Path, output: Path) -> int:
    """The exit code of `python train/dnd.py`, run in this process."""
    argv = ["--engine", str(ENGINE), "--data", str(data), "--output", str(output), "--threads", "1"]
    with pytest.raises(SystemExit) as done:
        cli.run(dnd.app, argv=argv)
    assert isinstance(done.value.code, int)
    return done.value.code


def test_the_submission_is_what_the_data_sets_own_code_makes(data: Path, tmp_path: Path) -> None:
    assert submit(data, tmp_path / "out") == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == [f"{index:04d}.mat" for index in range(1, 51)]
    assert {(name, shape, kind) for name, shape, kind in whosmat(files[0])} == {
        ("Idenoised", (1, 20), "cell"),
        ("israw", (1, 1), "logical"),
        ("eval_version", (1,), "char"),
    }
    held = loadmat(files[6])
    assert (bool(held["israw"][0, 0]), held["eval_version"][0]) == (False, "1.0")
    cells = held["Idenoised"][0]
    assert {(cell.shape, cell.dtype) for cell in cells} == {((SIZE, SIZE, 3), np.dtype(np.float32))}
    assert min(cell.min() for cell in cells) >= 0
    assert max(cell.max() for cell in cells) <= 1


class Untouched:
    """A denoiser that returns what it gets, to see what that is."""

    def denoise(self, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> object:
        assert image.flags.c_contiguous
        return image


def test_boxes_are_cut_as_matlab_counts(data: Path, tmp_path: Path) -> None:
    places = dnd.boxes(data)
    assert [of_image.shape for of_image in places] == 50 * [(20, 4)]
    assert places[3][5].tolist() == [9, 14, 16, 21]
    picture = dnd.noisy_image(data, 4)
    assert np.array_equal(picture, image(4))
    path = tmp_path / "one.mat"
    path.write_bytes(dnd.submission(Untouched(), picture, places[3]))  # type: ignore[arg-type]  # a double
    assert np.array_equal(loadmat(path)["Idenoised"][0, 5], image(4)[8:16, 13:21])
    with pytest.raises(InputError, match="box"):
        dnd.submission(Untouched(), picture[:10], places[3])  # type: ignore[arg-type]  # a double


def test_what_is_missing_or_in_the_way_is_one_line_before_anything_is_computed(
    data: Path, tmp_path: Path, one_error: Callable[[], str]
) -> None:
    def fails(folder: Path, expected: str, output: Path = tmp_path / "out") -> None:
        assert submit(folder, output) == 2
        assert expected in one_error()
        assert not (tmp_path / "out").exists()

    fails(tmp_path / "nowhere", "info.mat: expected a file of DND")
    broken = shutil.copytree(data, tmp_path / "broken")
    (broken / "images_srgb/0050.mat").unlink()
    fails(broken, "0050.mat: expected a file of DND")
    with h5py.File(broken / "info.mat", "w") as file:
        file["info/other"] = 1
    fails(broken, "expected DND's info.boundingboxes")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/0007.mat").write_text("mine")
    fails(data, "0007.mat exists already", tmp_path / "there")
    assert (tmp_path / "there/0007.mat").read_text() == "mine"


def test_an_image_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images_srgb").mkdir()
    for held in ({"Inoisy": np.zeros((4, 4))}, {"InoisySRGB": np.zeros((4, 4))}, {}):
        with h5py.File(tmp_path / "images_srgb/0001.mat", "w") as file:
            for name, values in held.items():
                file[name] = values
        with pytest.raises(InputError, match="expected an RGB image named InoisySRGB"):
            dnd.noisy_image(tmp_path, 1)
