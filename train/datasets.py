"""Finds the published data sets, as their archives unpack (`train/layouts.py`), in folders.

    python train/datasets.py                                # the table
    python train/datasets.py /data/SIDD_Medium_Srgb         # what a folder holds, and what of it is missing
    python train/datasets.py sidd=/data/SIDD_Medium_Srgb    # the same of a data set named explicitly

Training and evaluation tell which data set a folder holds by the names of its files, unless NAME=FOLDER says it.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from common import cli
from common.errors import InputError
from common.images import IMAGE_SUFFIXES

with cli.needs("dev", __name__):
    from train.examples import Example, photo
    from train.layouts import LAYOUTS, PHOTOS, Layout


_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class Found:
    """The part of a folder that follows one layout."""

    folder: Path
    layout: Layout
    examples: tuple[Example, ...]
    unpaired: tuple[str, ...] = ()
    """What is missing beside files that are there: "a clean image for FILE"."""
    unused: int = 0
    """Other images in a folder of pairs: which of them are clean is not known."""

    def __str__(self) -> str:
        unused = f", {self.unused} other images not used" if self.unused else ""
        return f"{self.folder}: {len(self.examples)} {self.layout.kind} ({self.layout.name}){unused}"

    @property
    def missing(self) -> str:
        """What the set lacks, in a line; empty where it is whole, or of any size."""
        if self.unpaired:
            more = f" (and {len(self.unpaired) - 1} more)" if len(self.unpaired) > 1 else ""
            return f"expected {self.unpaired[0]}, found none{more}"
        if self.layout.count not in (0, len(self.examples)):
            return (
                f"expected the {self.layout.count} {self.layout.kind} of {self.layout.name}, found {len(self.examples)}"
            )
        return ""


def parse(text: str) -> tuple[Layout | None, Path]:
    """(layout, folder) of NAME=FOLDER or FOLDER; the layout is None where the folder's files are to tell.

    Raises InputError where there is no folder in it.
    """
    name, separator, folder = text.partition("=")
    layout = next((layout for layout in LAYOUTS if separator and layout.name == name), None)
    folder = folder if layout else text
    if not folder:  # as an unset "$DATA" is; Path would take it for the current folder
        raise InputError(f"expected FOLDER or NAME=FOLDER, found {text!r}")
    return layout, Path(folder)


def absolute(text: str) -> str:
    """NAME=FOLDER or FOLDER with the folder's whole path."""
    layout, folder = parse(text)
    return f"{layout.name}={folder.resolve()}" if layout else str(folder.resolve())


def find(text: str) -> list[Found]:
    """What the folder of NAME=FOLDER or FOLDER holds, in the table's order.

    Raises InputError where there is no such folder, nothing of what was named, no image, or two clean images for one
    noisy one.
    """
    named, folder = parse(text)
    rest = _files(folder)
    found: list[Found] = []
    for layout in (named,) if named else LAYOUTS:
        part, used = _match(layout, folder, rest)
        if used:
            found.append(part)
            rest = [path for path in rest if path not in used]
    if not found:
        wanted = f"{named.name} ({named.holds}, from {named.page})" if named else f"images ({_SUFFIXES})"
        raise InputError(f"{folder}: expected {wanted}, found none")
    if found[-1].layout is PHOTOS and any(part.layout.noisy for part in found):
        photos = found.pop()
        found[0] = replace(found[0], unused=len(photos.examples))
    return found


def examples(folders: Sequence[str]) -> tuple[list[Example], list[Found]]:
    """All that training may use of NAME=FOLDER or FOLDER arguments: photos in the order of their paths, then pairs in
    that of their noisy images; and where they were found.

    Raises InputError for a folder without images, with incomplete pairs, or with images that are kept for testing.
    """
    if not folders:
        raise InputError(f"no --data: expected folders of images ({_SUFFIXES})")
    found = [part for folder in folders for part in find(folder)]
    for part in found:
        if part.layout.test:
            raise InputError(
                f"{part}: this is a test set, which is never trained on: leave it out of --data; if it is no more than "
                f"photos of such names, say photos={part.folder}"
            )
        if part.unpaired:
            raise InputError(f"{part.folder}: {part.missing}: is the download of {part.layout.name} complete?")
    # folders may lie in each other, or be linked
    unique = {os.path.realpath(e.noisy or e.clean[0]): e for part in found for e in part.examples}
    return sorted(unique.values(), key=lambda e: (e.noisy is not None, e.noisy or e.clean[0])), found


def _files(folder: Path) -> list[Path]:
    """All images and .mat files below the folder, and below those linked in it, but for hidden ones, in the order of
    their paths."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of images, found {'a file' if folder.exists() else 'nothing'}")
    suffixes = IMAGE_SUFFIXES | {".mat"}
    found, seen, tops = [], set[str](), [folder]
    for top in tops:  # linked ones come after all that lie here: a link to one of these adds nothing
        for root, folders, names in os.walk(top):
            here = os.path.realpath(root)
            if here in seen:
                folders.clear()
                continue
            seen.add(here)
            tops += [link for name in sorted(folders) if (link := Path(root) / name).is_symlink()]
            paths = [Path(root) / name for name in names if not name.startswith(".")]
            found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return sorted(found)


def _match(layout: Layout, folder: Path, files: Sequence[Path]) -> tuple[Found, set[Path]]:
    """The examples of `layout` among `files`, and the files that they take; none where no noisy image is there."""
    clean, noisy = (_keyed(pattern, folder, files, layout.test) for pattern in (layout.clean, layout.noisy))
    if layout.noisy is None:
        photos = tuple(photo(path) for paths, _ in clean.values() for path in paths)
        return Found(folder, layout, photos), {path for paths, _ in clean.values() for path in paths}
    if not noisy:
        return Found(folder, layout, ()), set()
    pairs, unpaired = [], []
    for key, (paths, scene) in noisy.items():
        if layout.clean is None or key in clean:
            of_scene = tuple(clean[key][0]) if layout.clean else ()
            if len(of_scene) > 1 and not layout.averaged:
                text = f"{paths[0]}: expected one clean image, found {of_scene[0].name} and {of_scene[1].name}"
                raise InputError(f"{text}: names must differ in more than case and ending")
            pairs += [Example(of_scene, path, scene) for path in paths]
        else:
            unpaired += [f"a clean image for {path}" for path in paths]
    unpaired += [f"a noisy image for {path}" for key, (paths, _) in clean.items() if key not in noisy for path in paths]
    used = {path for group in (clean, noisy) for paths, _ in group.values() for path in paths}
    return Found(folder, layout, tuple(pairs), tuple(unpaired)), used


def _keyed(
    pattern: str | None, folder: Path, files: Sequence[Path], wherever: bool
) -> dict[str, tuple[list[Path], str]]:
    """Key -> (files with it, their scene). The key is the text of the pattern's groups, or the path without any.

    wherever: what the file's own path says, to which a link may lead, counts too.
    """
    keyed: dict[str, tuple[list[Path], str]] = {}
    compiled = re.compile(pattern or r"(?!)", re.IGNORECASE)
    name = folder.resolve().name
    for path in files:
        match = compiled.fullmatch(f"{name}/{path.relative_to(folder).as_posix()}")
        if match or (wherever and (match := compiled.fullmatch(_real(path)))):
            groups = match.groups()
            key = "\0".join(groups).lower() if groups else str(path)
            keyed.setdefault(key, ([], _scene(match)))[0].append(path)
    return keyed


@lru_cache(2**20)
def _real(path: Path) -> str:
    return Path(os.path.realpath(path)).as_posix()


def _scene(match: re.Match[str]) -> str:
    groups = match.groupdict("")
    if "root" in groups:
        return groups["root"] + (groups["scene"] or groups["name"])
    return groups.get("scene", "")


app = cli.application("What data sets there are, and what folders hold of them.")


@app.command()
def main(
    folders: Annotated[list[str] | None, typer.Argument(help="FOLDER or NAME=FOLDER; without any: the table")] = None,
) -> None:
    """Print one line for each data set found, and what it lacks; exit with 1 where something is missing."""
    if not folders:
        for layout in LAYOUTS:
            size = f"{layout.count or 'any number of'} {layout.kind}{', for testing' if layout.test else ''}"
            print(f"{layout.name}: {size}", layout.holds, layout.page, sep="\n    ")
        return
    missing = False
    for part in (part for folder in folders for part in find(folder)):
        missing |= bool(part.missing)
        whole = ": complete" if part.layout.count else ""
        print(f"{part}: {part.missing}; get it from {part.layout.page}" if part.missing else f"{part}{whole}")
    if missing:
        raise typer.Exit(1)


if __name__ == "__main__":
    cli.run(app)
