"""Which files a command means, and where their results go. Nothing is opened, so the files are empty."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from runtime.jobs import Job, Plan, make_plan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that relative names start from."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def pairs(plan: Plan) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in plan.jobs}


def plan_of(*inputs: str, output: str | None = None, **options: Any) -> Plan:
    return make_plan([Path(name) for name in inputs], Path(output) if output else None, **options)


def test_files_folders_and_patterns_together(here: Path) -> None:
    touch(
        "a.jpg", "in/b.PNG", "in/deep/c.mp4", "in/notes.txt", "in/.d.png", "in/.deep/e.png", "x/1/f.tif", "x/1/2/g.tif"
    )
    plan = plan_of("a.jpg", "in", "x/**/*.tif", output="out")
    assert plan.faults == []
    assert pairs(plan) == {
        "a.jpg": "out/a.jpg",
        "in/b.PNG": "out/b.PNG",
        "in/deep/c.mp4": "out/deep/c.mp4",
        "x/1/2/g.tif": "out/1/2/g.tif",
        "x/1/f.tif": "out/1/f.tif",
    }
    assert [job.video for job in plan.jobs] == [False, False, True, False, False]
    assert not plan.alone
    assert pairs(plan_of("in")) == {
        "in/b.PNG": f"{here}/in_denoised/b.PNG",
        "in/deep/c.mp4": f"{here}/in_denoised/deep/c.mp4",
    }


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("[ab].jpg", ["a.jpg"]),
        ("?.jpg", ["a.jpg"]),
        ("x/*.jpg", ["x/b.jpg"]),
        ("*/b.jpg", ["x/b.jpg"]),
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/c.jpg"]),
        ("**/**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/c.jpg"]),
        ("x/**/*.jpg", ["x/b.jpg", "x/y/c.jpg"]),
        ("**/y/*", ["x/y/c.jpg", "x/y/d.png"]),
        ("x/**", ["x/b.jpg", "x/y/c.jpg", "x/y/d.png"]),
        ("./x/**/c.*", ["x/y/c.jpg"]),
        ("**/.h/*.jpg", ["x/.h/f.jpg"]),
        ("../here/*.jpg", ["../here/a.jpg"]),
    ],
)
def test_patterns(here: Path, pattern: str, found: list[str]) -> None:
    touch("a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", "x/y/e.txt", "x/.h/f.jpg", "folder.jpg/g.txt")
    assert sorted(pairs(plan_of(pattern, output="out"))) == sorted(found)
    beside = pairs(plan_of(pattern))
    assert beside == {name: f"{name.rpartition('.')[0]}_denoised.{name.rpartition('.')[2]}" for name in found}


def test_a_name_that_looks_like_a_pattern_is_a_name(here: Path) -> None:
    touch("a[1].jpg", "a1.jpg")
    plan = plan_of("a[1].jpg")
    assert (pairs(plan), plan.alone) == ({"a[1].jpg": "a[1]_denoised.jpg"}, True)


def test_loops_of_links_end(here: Path) -> None:
    touch("x/a.jpg", "x/y/b.jpg")
    for name in ("x/up", "x/here", "x/y/up", "x/y/over"):
        Path(name).symlink_to(here)
    Path("x/self.jpg").symlink_to(here / "x" / "self.jpg")
    assert {"x/a.jpg", "x/y/b.jpg"} <= set(pairs(plan_of("x"))) <= {"x/a.jpg", "x/y/b.jpg", "x/self.jpg"}
    assert {"x/a.jpg", "x/y/b.jpg"} <= set(pairs(plan_of("**/*.jpg"))) <= {"x/a.jpg", "x/y/b.jpg", "x/self.jpg"}


def test_no_pattern_leads_out_of_the_output_folder(here: Path) -> None:
    touch("x/1/a.jpg", "b.jpg")
    plan = plan_of("x/*/../../b.jpg", output="out")
    assert plan.jobs == []
    assert "'..' only before" in str(plan.faults[0])


@settings(max_examples=100, deadline=None)
@given(
    pattern=st.lists(
        st.sampled_from(["**", "*", "..", ".", "x", "y", "*.jpg", "b.jpg", "[xy]", "?"]), min_size=1, max_size=6
    ).map("/".join),
    given_folder=st.booleans(),
)
def test_everything_goes_below_the_output_folder(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, given_folder: bool
) -> None:
    top = tmp_path_factory.getbasetemp() / "a/b/c/d/e/f/g/tree"  # deeper than .. leads
    for name in ("x/y/x/b.jpg", "x/b.jpg", "y/a.jpg", "b.jpg"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    if given_folder:
        pattern = f"{pattern}/**"
    try:
        plan = make_plan([top / pattern], top / "out" / "below")
    except InputError:
        return
    for job in plan.jobs:
        assert os.path.normpath(job.target).startswith(f"{top}/out/below"), job


def test_one_bad_folder_stops_no_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("in/a.jpg", "in/locked/b.jpg", "in/z/c.jpg")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may enter any folder
    plan = plan_of("in", "missing.jpg")
    assert sorted(pairs(plan)) == ["in/a.jpg", "in/z/c.jpg"]
    assert [str(fault).partition(":")[0] for fault in plan.faults] == ["in/locked", "missing.jpg"]
    assert sorted(pairs(plan_of("in/**/*.jpg"))) == ["in/a.jpg", "in/z/c.jpg"]


def test_outputs_that_exist(here: Path) -> None:
    touch("in/a.jpg", "in/b.jpg", "out/a.jpg")
    plan = plan_of("in", output="out")
    assert (len(plan.jobs), plan.skipped, len(plan.faults)) == (1, 0, 1)
    assert "exists already: pass --overwrite to replace it, --skip-existing to leave it" in str(plan.faults[0])
    plan = plan_of("in", output="out", skip_existing=True)
    assert (pairs(plan), plan.skipped, plan.faults) == ({"in/b.jpg": "out/b.jpg"}, 1, [])
    assert len(plan_of("in", output="out", overwrite=True).jobs) == 2


def test_results_beside_their_originals_are_no_inputs(here: Path) -> None:
    touch("a.jpg", "a_denoised.jpg", "b.jpg", "c_denoised.jpg")
    for inputs in (["*.jpg"], ["a.jpg", "a_denoised.jpg", "b.jpg", "c_denoised.jpg"]):
        plan = plan_of(*inputs, skip_existing=True)
        assert sorted(pairs(plan)) == ["b.jpg", "c_denoised.jpg"]  # of the last there is no original
        assert (plan.skipped, plan.faults, plan.results) == (1, [], [Path("a_denoised.jpg")])
        replacing = plan_of(*inputs, overwrite=True)
        assert (sorted(pairs(replacing)), replacing.faults) == (["a.jpg", "b.jpg", "c_denoised.jpg"], [])
    touch("folder/a.jpg", "folder/a_denoised.jpg")
    assert pairs(plan_of("folder", output="out")) == {"folder/a.jpg": "out/a.jpg"}
    assert pairs(plan_of("a_denoised.jpg")) == {"a_denoised.jpg": "a_denoised_denoised.jpg"}  # named, and alone


def test_a_folders_results_beside_it_are_no_inputs(here: Path) -> None:
    touch("in/x/a.jpg", "in/x_denoised/a.jpg", "in/y_denoised/a.jpg")
    plan = plan_of("in", output="out")
    assert sorted(pairs(plan)) == ["in/x/a.jpg", "in/y_denoised/a.jpg"]  # of the last there is no original
    assert (plan.results, plan.faults) == ([Path("in/x_denoised")], [])
    assert sorted(pairs(plan_of("in/x_denoised", output="out"))) == ["in/x_denoised/a.jpg"]
    (here / "in" / "y").symlink_to(here)  # a link is not walked
    assert sorted(pairs(plan_of("in", output="out"))) == ["in/x/a.jpg", "in/y_denoised/a.jpg"]


def test_an_output_that_is_a_link_is_replaced_itself(here: Path) -> None:
    touch("in/a.jpg", "in/b.jpg", "out/a.jpg")
    (here / "out" / "b.jpg").symlink_to("a.jpg")
    plan = plan_of("in", output="out", overwrite=True)
    assert (sorted(pairs(plan)), plan.faults) == (["in/a.jpg", "in/b.jpg"], [])


def test_partial_videos_beside_their_originals_are_no_inputs(here: Path) -> None:
    touch("a.mp4", "a_denoised.partial.mp4", "a_denoised.partial1.mp4", "b.partial.mp4")
    plan = plan_of("*.mp4")
    assert sorted(pairs(plan)) == ["a.mp4", "b.partial.mp4"]
    assert plan.results == [Path("a_denoised.partial.mp4"), Path("a_denoised.partial1.mp4")]


def test_images_become_those_of_one_format_and_videos_stay(here: Path) -> None:
    touch("in/a.tif", "in/x/b.PNG", "in/c.mp4", "d.png", "d_denoised.jpg")
    assert pairs(plan_of("in", suffix=".jpg")) == {
        "in/a.tif": str(here / "in_denoised/a.jpg"),
        "in/c.mp4": str(here / "in_denoised/c.mp4"),
        "in/x/b.PNG": str(here / "in_denoised/x/b.jpg"),
    }
    plan = plan_of("d.png", "d_denoised.jpg", suffix=".jpg", overwrite=True)
    assert (pairs(plan), plan.results) == ({"d.png": "d_denoised.jpg"}, [Path("d_denoised.jpg")])
    touch("in/a.png")
    assert "in/a.tif and in/a.png would both be written to" in str(plan_of("in", suffix=".jpg").faults[0])
    with pytest.raises(InputError, match="expected a folder that exists, as --format is for many"):
        plan_of("d.png", output="e.png", suffix=".jpg")


def test_outputs_below_a_pattern_are_no_inputs(here: Path) -> None:
    touch("in/a.jpg", "clean/in/a.jpg", "clean/b.jpg")
    plan = plan_of("**/*.jpg", output="clean", skip_existing=True)
    assert (pairs(plan), plan.skipped, plan.faults) == ({}, 1, [])
    assert pairs(plan_of("clean/*.jpg", output="again")) == {"clean/b.jpg": "again/b.jpg"}
    assert "would be written over clean/b.jpg, an input" in str(plan_of("clean/*.jpg", output="clean").faults[0])


def test_outputs_below_a_folder_are_no_inputs(here: Path) -> None:
    touch("in/a.jpg", "in/clean/a.jpg")
    plan = plan_of("in", output="in/clean", overwrite=True)
    assert (pairs(plan), plan.faults) == ({"in/a.jpg": "in/clean/a.jpg"}, [])


def test_an_input_is_not_written_over_by_way_of_a_link(here: Path) -> None:
    touch("in/a.jpg")
    Path("out").mkdir()
    Path("out/a.jpg").symlink_to(here / "in/a.jpg")
    plan = plan_of("in", output="out", overwrite=True)
    assert plan.jobs == []
    assert "would be written over out/a.jpg, an input" in str(plan.faults[0])


def test_kinds_that_are_not_read_are_counted_in_folders_and_named_with_what_helps(here: Path) -> None:
    touch("in/a.jpg", "in/b.HEIC", "in/x/c.heic", "in/d.avi", "in/.e.heic", "in/notes.txt")
    plan = plan_of("in")
    assert (dict(plan.left_out), plan.faults, plan.into) == ({".heic": 2, ".avi": 1}, [], here / "in_denoised")
    touch("phone/a.heic", "phone/b.heic")
    assert str(plan_of("phone").faults[0]).endswith("found none but 2 .heic in it")
    assert str(plan_of("in/b.HEIC").faults[0]).endswith("found '.HEIC': export it as TIFF or JPEG first")
    assert str(plan_of("in/d.avi").faults[0]).endswith("found '.avi': ffmpeg -i IN -c copy OUT.mkv wraps it anew")


def test_an_input_given_twice_is_done_once(here: Path) -> None:
    touch("a.jpg")
    plan = plan_of("a.jpg", "a.jpg", "*.jpg")
    assert (pairs(plan), plan.faults) == ({"a.jpg": "a_denoised.jpg"}, [])


def test_an_input_of_two_spellings_is_done_once(here: Path) -> None:
    touch("a.jpg", "x/b.jpg")
    plan = plan_of("a.jpg", str(here / "a.jpg"), "x/../a.jpg")
    assert (pairs(plan), plan.faults) == ({"a.jpg": "a_denoised.jpg"}, [])
    plan = plan_of("x", str(here / "x"), output="out")
    assert (pairs(plan), plan.faults) == ({"x/b.jpg": "out/b.jpg"}, [])


def test_two_inputs_with_one_output_are_refused(here: Path) -> None:
    touch("x/a.png", "y/a.png", "y/b.png")
    plan = plan_of("x", "y", output="out")
    assert plan.jobs == [Job(Path("x/a.png"), Path("out/a.png")), Job(Path("y/b.png"), Path("out/b.png"))]
    assert [str(fault) for fault in plan.faults] == [
        "y/a.png and x/a.png would both be written to out/a.png: give them folders of their own"
    ]


def test_a_folder_is_not_its_own_output(here: Path) -> None:
    touch("x/a.png")
    for output in ("x", "./x/../x"):
        with pytest.raises(InputError, match="expected another folder"):
            plan_of("x", output=output)


def test_a_video_is_written_as_a_video(here: Path) -> None:
    touch("a.mp4", "a.png")
    assert pairs(plan_of("a.mp4", output="b.mkv")) == {"a.mp4": "b.mkv"}
    for source, target in (("a.mp4", "b.png"), ("a.png", "b.mp4")):
        assert "expected a file name ending in" in str(plan_of(source, output=target).faults[0])
