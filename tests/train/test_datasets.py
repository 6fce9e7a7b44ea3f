"""Every data set of the table, made small in the layout of its archive: found, checked, and what is missing named."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import cli
from common.errors import InputError
from train import datasets
from train.datasets import absolute, examples, find, parse
from train.layouts import LAYOUTS

DOCS = Path(__file__).parents[2] / "docs/data.md"

ARCHIVES: dict[str, tuple[list[str], int]] = {
    "sidd": (
        [
            f"SIDD_Medium_Srgb/Data/{scene}/{scene[:5]}{kind}_SRGB_{shot}.PNG"
            for scene in ("0001_001_S6_00100_00060_3200_L", "0002_001_S6_00100_00020_3200_N")
            for kind in ("NOISY", "GT")
            for shot in ("010", "011")
        ],
        4,
    ),
    "renoir": (
        [
            f"{camera}_Aligned/Batch_{batch:03}/IMG_{batch}{n}{kind}.bmp"
            for camera in ("Mi3", "S90")
            for batch in (1, 2)
            for n, kind in enumerate(("Reference", "full", "Noisy", "Noisy"))
        ],
        8,
    ),
    "polyu": (
        [
            f"CroppedImages/{name}_{kind}.JPG"
            for name in ("Canon5D2_5_160_3200_chair_11", "Canon5D2_5_160_3200_chair_5", "NikonD800_5_plant__4")
            for kind in ("real", "mean")
        ],
        3,
    ),
    "pairs": ([f"mine/{kind}/day/{name}" for kind in ("noisy", "clean") for name in ("a.jpg", "b.png")], 2),
    "cc": (
        [f"CC/{name}_{kind}.png" for name in ("d800_iso1600_1", "5dmark3_iso3200_2") for kind in ("real", "mean")],
        2,
    ),
    "nam": (["real_image_noise_dataset/Nikon_D600/ISO_3200/C_1.mat"], 1),
    "sidd_validation": (["val/ValidationNoisyBlocksSrgb.mat", "val/ValidationGtBlocksSrgb.mat"], 1),
    "dnd": (["dnd_2017/images_srgb/0001.mat", "dnd_2017/images_srgb/0050.mat"], 2),
    "div2k": (["DIV2K_train_HR/0001.png", "DIV2K_train_HR/0800.png"], 2),
    "bsds500_val": (["BSDS500/data/images/val/101085.jpg", "BSDS500/data/images/val/3096.jpg"], 2),
    "bsd68": (["BSD68/test001.png"], 1),
    "cbsd68": (["CBSD68/101085.png", "CBSD68/3096.png"], 2),
    "kodak24": (["Kodak24/kodim01.png"], 1),
    "mcmaster": (["McM/1.tif", "McM/18.tif"], 2),
    "set12": (["Set12/01.png"], 1),
    "photos": (["holiday/1.jpg", "holiday/deeper/test002.png"], 2),
}

Unpack = Callable[[Sequence[str]], Path]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """unpack(files): makes them; returns the folder whose files they are."""

    def make(files: Sequence[str]) -> Path:
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        tops = {name.split("/")[0] for name in files}
        return tmp_path / tops.pop() if len(tops) == 1 else tmp_path

    return make


def test_every_data_set_of_the_table_is_tested_and_documented() -> None:
    assert list(ARCHIVES) == [layout.name for layout in LAYOUTS]
    text = DOCS.read_text()
    for layout in LAYOUTS:
        row = re.search(rf"^\| `{layout.name}` .*$", text, re.MULTILINE)
        assert row, layout.name
        assert layout.page.split(" ")[0] in row[0]
        assert not layout.count or str(layout.count) in row[0]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_unpacked_archive_is_recognised(name: str, unpack: Unpack) -> None:
    files, count = ARCHIVES[name]
    folder = unpack(files)
    for text in (str(folder), f"{name}={folder}"):
        (part,) = find(text)
        assert (part.layout.name, len(part.examples), part.unpaired) == (name, count, ())
        taken = {path for e in part.examples for path in (*e.clean, *([e.noisy] if e.noisy else []))}
        assert taken == {folder.parent / file if folder.name == file.split("/")[0] else folder / file for file in files}


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS if layout.count])
def test_the_check_says_how_many_are_missing(name: str, unpack: Unpack, capsys: pytest.CaptureFixture[str]) -> None:
    files, count = ARCHIVES[name]
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    assert check(unpack(files)) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert f"expected the {layout.count} {layout.kind} of {name}, found {count}; get it from {layout.page}" in line


def check(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        cli.run(datasets.app, argv=[str(argument) for argument in arguments])
    sys.stdout.flush()
    assert isinstance(done.value.code, int)
    return done.value.code


def test_the_check_is_content_with_a_whole_set_and_prints_the_table(
    unpack: Unpack, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(unpack([f"Kodak24/kodim{i:02}.png" for i in range(1, 25)])) == 0
    assert capsys.readouterr().out.endswith("24 images (kodak24): complete\n")
    assert check() == 0
    out = capsys.readouterr().out
    assert all(layout.page in out and layout.holds in out for layout in LAYOUTS)


@pytest.mark.parametrize(
    ("name", "lost", "found"),
    [
        ("sidd", "0002_GT_SRGB_011.PNG", "a clean image for .*0002_NOISY_SRGB_011.PNG, found none"),
        ("sidd", "0002_NOISY_SRGB_011.PNG", "a noisy image for .*0002_GT_SRGB_011.PNG, found none"),
        ("polyu", "Canon5D2_5_160_3200_chair_5_mean.JPG", "a clean image for .*chair_5_real.JPG, found none"),
        ("pairs", "clean/day/b.png", "a clean image for .*noisy/day/b.png, found none"),
        ("cc", "d800_iso1600_1_mean.png", "a clean image for .*d800_iso1600_1_real.png, found none"),
        ("sidd_validation", "ValidationGtBlocksSrgb.mat", "a clean image for .*ValidationNoisyBlocksSrgb.mat"),
    ],
)
def test_a_lost_half_of_a_pair_is_named(
    name: str, lost: str, found: str, unpack: Unpack, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpack([file for file in ARCHIVES[name][0] if not file.endswith(lost)])
    assert check(folder) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search(found, line)
    if not next(layout for layout in LAYOUTS if layout.name == name).test:
        with pytest.raises(InputError, match=found):
            examples([str(folder)])


def test_a_renoir_scene_without_its_reference_is_named_once_for_all(unpack: Unpack) -> None:
    lost = ("Batch_002/IMG_20Reference.bmp", "Batch_002/IMG_21full.bmp")
    folder = unpack([file for file in ARCHIVES["renoir"][0] if not file.endswith(lost)])
    with pytest.raises(InputError, match=r"a clean image for .*Noisy\.bmp, found none \(and 3 more\)"):
        examples([str(folder)])


def test_pairs_know_their_scene_and_all_its_clean_images(unpack: Unpack) -> None:
    (renoir,) = find(str(unpack(ARCHIVES["renoir"][0])))
    first = renoir.examples[0]
    assert [path.name for path in first.clean] == ["IMG_10Reference.bmp", "IMG_11full.bmp"]
    assert len({e.scene for e in renoir.examples}) == 4


def test_all_photos_of_one_of_sidds_scenes_and_all_crops_of_a_polyu_photo_are_one_scene(unpack: Unpack) -> None:
    (sidd,) = find(str(unpack(ARCHIVES["sidd"][0])))
    assert {e.scene for e in sidd.examples} == {"001"}
    (polyu,) = find(str(unpack(ARCHIVES["polyu"][0])))  # in a folder beside
    assert [Path(e.scene).name for e in polyu.examples] == [
        "Canon5D2_5_160_3200_chair",
        "Canon5D2_5_160_3200_chair",
        "NikonD800_5_plant",
    ]


def test_your_own_pairs_are_of_the_scene_that_their_folder_names(unpack: Unpack) -> None:
    names = ["a/1", "a/2", "b/1"]
    folder = unpack([f"x/{half}/{name}.png" for half in ("noisy", "clean") for name in names])
    scenes = [Path(e.scene).name for e in examples([str(folder)])[0]]
    assert scenes == ["a", "a", "b"]
    folder = unpack([f"y/{camera}/{half}/1.png" for half in ("noisy", "clean") for camera in ("one", "two")])
    assert len({e.scene for e in examples([str(folder)])[0]}) == 2  # each pair is one, of its camera


@pytest.mark.parametrize("second", ["clean/IMG.png", "clean/img.bmp"])
def test_two_clean_images_for_one_noisy_one_are_refused(second: str, unpack: Unpack) -> None:
    folder = unpack(["noisy/img.png", "clean/img.png", second])
    with pytest.raises(InputError, match=r"noisy/img\.png: expected one clean image, found "):
        find(str(folder))


def test_links_are_followed_and_what_they_lead_to_is_taken_once(unpack: Unpack) -> None:
    folder = unpack(["photos/1.png", "more/2.png"])
    (folder / "photos" / "linked").symlink_to(folder / "more")
    (folder / "more" / "back").symlink_to(folder / "photos")
    found, _ = examples([str(folder / "photos")])
    assert sorted(e.name for e in found) == ["1.png", "2.png"]
    found, _ = examples([str(folder / "photos"), str(folder / "more")])
    assert sorted(e.name for e in found) == ["1.png", "2.png"]


def test_a_link_to_what_is_there_already_changes_nothing(unpack: Unpack) -> None:
    folder = unpack(["x/noisy/1.png", "x/clean/1.png"])
    (folder / "latest").symlink_to("noisy")
    (folder / "all").symlink_to("clean")
    (folder / "up").symlink_to("..")
    found, _ = examples([str(folder)])
    assert [(e.noisy, e.clean) for e in found] == [(folder / "noisy/1.png", (folder / "clean/1.png",))]


def test_a_link_leads_no_test_set_in(unpack: Unpack) -> None:
    folder = unpack(["mine/1.png", "sets/CBSD68/101085.png"])
    (folder / "mine" / "more").symlink_to(folder / "sets" / "CBSD68")
    with pytest.raises(InputError, match=r"cbsd68.*test set, which is never trained on"):
        examples([str(folder / "mine")])


@pytest.mark.parametrize("text", ["", "photos="])
def test_no_folder_is_not_the_current_one(text: str, unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unpack(["x/1.png"]))
    with pytest.raises(InputError, match="expected FOLDER or NAME=FOLDER"):
        absolute(text)


def test_other_images_beside_pairs_are_counted_and_left_alone(unpack: Unpack) -> None:
    polyu = [f"PolyU/{file}" for file in ARCHIVES["polyu"][0]]
    folder = unpack([*polyu, "PolyU/OriginalImages/Canon5D2_bag_mean.JPG", "PolyU/figure.png"])
    found, (part,) = examples([str(folder)])
    assert (len(found), part.unused) == (3, 2)
    assert "2 other images not used" in str(part)


def test_training_takes_photos_then_pairs_each_once_in_the_order_of_their_paths(unpack: Unpack) -> None:
    folder = unpack(["x/b/2.png", "x/b/1.png", "x/a/9.jpg", *(f"x/p/{file}" for file in ARCHIVES["polyu"][0])])
    found, _ = examples([str(folder / place) for place in ("p", "b", "a", "b", "p/CroppedImages")])
    assert [e.name for e in found[:3]] == ["9.jpg", "1.png", "2.png"]
    assert [e.noisy is not None for e in found] == 3 * [False] + 3 * [True]


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS if layout.test])
def test_test_sets_are_never_trained_on(name: str, unpack: Unpack) -> None:
    folder = unpack(ARCHIVES[name][0])
    for text in (folder, folder.parent):
        with pytest.raises(InputError, match=f"{name}.*test set, which is never trained on"):
            examples([str(text)])


@pytest.mark.parametrize(
    "file",
    ["BSDS300/images/test/101085.jpg", "CBSD68/original_png/0000.png", "CBSD68/noisy5/0000.png", "mine/kodim23.png"],
)
def test_nor_are_other_copies_of_them(file: str, unpack: Unpack) -> None:
    folder = unpack([f"x/{name}" for name in (file, "CBSD68/original_png/0001.png", "photos/a.png")])
    with pytest.raises(InputError, match="test set, which is never trained on"):
        examples([str(folder)])


def test_pairs_whose_paths_read_alike_without_their_folders_are_two(unpack: Unpack) -> None:
    files = [f"set/{path}.png" for path in ("clean/a/b", "noisy/a/b", "a/clean/b", "a/noisy/b")]
    pairs, _ = examples([str(unpack(files))])
    assert [len(pair.clean) for pair in pairs] == [1, 1]
    for pair in pairs:
        assert pair.noisy is not None
        assert str(pair.clean[0]) == str(pair.noisy).replace("noisy", "clean")


def test_folders_without_images_are_refused(unpack: Unpack, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_text("x")
    for place, message in (("empty", "found none"), ("none", "found nothing"), ("file.png", "found a file")):
        with pytest.raises(InputError, match=message):
            find(str(tmp_path / place))
    with pytest.raises(InputError, match="--data"):
        examples([])
    with pytest.raises(InputError, match=r"expected sidd \(.*, from https://.*\), found none"):
        find(f"sidd={unpack(ARCHIVES['polyu'][0])}")


def test_a_name_is_read_only_where_it_is_a_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    layout, folder = parse("sidd=a/b=c")
    assert (layout and layout.name, folder) == ("sidd", Path("a/b=c"))
    assert parse("iso=200") == (None, Path("iso=200"))
    assert absolute("polyu=x") == f"polyu={tmp_path}/x"
    assert absolute("x") == str(tmp_path / "x")


def test_the_shipped_list_of_held_out_scenes_is_ten_scenes_of_polyu() -> None:
    names = (DOCS.parents[1] / "train/splits/polyu_validation.txt").read_text().splitlines()
    assert len(set(names)) == 10
    assert {name.split("_")[0] for name in names} == {"Canon5D2", "Canon600D", "Canon80D", "NikonD800", "Sony"}
    polyu = next(layout for layout in LAYOUTS if layout.name == "polyu")
    assert polyu.noisy
    for name in names:
        match = re.fullmatch(polyu.noisy, f"CroppedImages/{name}_7_real.JPG", re.IGNORECASE)
        assert match
        assert Path(match["scene"]).name == name


def test_hidden_files_and_files_of_other_kinds_are_no_images(unpack: Unpack) -> None:
    folder = unpack(["x/1.png", "x/.hidden.png", "x/notes.txt", "x/table.mat"])
    (part,) = find(str(folder))
    assert [e.name for e in part.examples] == ["1.png"]


def test_images_of_the_shipped_layout_decode(tmp_path: Path) -> None:
    """One data set with pixels, from the folder to a bank: the names are found, the pixels are the files'."""
    from train.data import open_bank

    batch = tmp_path / "T3i_Aligned/Batch_001"
    batch.mkdir(parents=True)
    for name, level in (("IMG_1Reference", 100), ("IMG_2full", 103), ("IMG_3Noisy", 90)):
        cv2.imwrite(str(batch / f"{name}.bmp"), np.full((16, 16, 3), level, np.uint8))
    found, _ = examples([str(tmp_path / "T3i_Aligned")])
    bank = open_bank(found, channels=3, cache=tmp_path / "bank")
    assert bank.names == ("IMG_3Noisy.bmp",)
    assert set(bank[0][..., :3].ravel()) == {90}
    assert set(bank[0][..., 3:].ravel()) == {102}  # the mean of 100 and 103, rounded half to even
