"""Which files are denoised, and where each result goes: files, folders and patterns as a list of pairs.

Known before a model is loaded, so that what cannot be done is told at once.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from common.errors import InputError, OutputError, SadnetError
from common.files import ending
from common.images import IMAGE_SUFFIXES
from runtime.video import VIDEO_SUFFIXES

SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_KINDS = "heic heif avif jxl jp2 ppm psd exr dng cr2 cr3 nef arw orf raf rw2 pef srw"
_PHOTOS = {f".{kind}": "export it as TIFF or JPEG first" for kind in _KINDS.split()}
_VIDEOS = dict.fromkeys((".avi", ".mts", ".m2ts", ".wmv", ".flv"), "ffmpeg -i IN -c copy OUT.mkv wraps it anew")
OTHERS = _PHOTOS | _VIDEOS | {".gif": "ffmpeg -i IN OUT.mkv makes a video of it"}
"""Endings of photos and videos that are not read, and what helps."""
_WILD = frozenset("*?[")
_DENOISED = "_denoised"


@dataclass(frozen=True)
class Job:
    """One file to denoise."""

    source: Path
    target: Path

    @property
    def video(self) -> bool:
        return is_video(self.source)


@dataclass
class Plan:
    """What is to be done."""

    jobs: list[Job] = field(default_factory=list)
    skipped: int = 0
    """Outputs that are there already, where those are to be skipped."""
    faults: list[SadnetError] = field(default_factory=list)
    """One for each input that cannot be done, or output that may not be written."""
    alone: bool = False
    """The command names a single file, not a folder or pattern."""
    into: Path | None = None
    """The folder that all outputs are below, where there is one."""
    left_out: Counter[str] = field(default_factory=Counter)
    """By their endings, photos and videos of kinds that are not read, in the folders given."""
    results: list[Path] = field(default_factory=list)
    """Of an earlier run: X_denoised.jpg where X.jpg is an input too, and folders X_denoised beside a folder X that is
    walked. They are left out."""

    @property
    def others(self) -> str:
        """What is left out, in words."""
        return ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.left_out.items()))


def is_video(path: Path) -> bool:
    """By the file's name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def make_plan(
    inputs: list[Path],
    output: Path | None,
    *,
    suffix: str = "",
    overwrite: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """Pair every image and video of `inputs` with the file that it will be written to.

    inputs: files; folders, whose files keep their place below them; patterns that the shell has left alone, whose files
    keep their place below the pattern's fixed part (`**` stands for any number of folders).
    output: a file for one file, a folder otherwise. None: files go beside their originals as NAME_denoised, a folder's
    into FOLDER_denoised.
    suffix: of all images that are written, such as ".jpg"; by default each keeps its own. Videos keep theirs.

    An output that exists is a fault unless it is to be overwritten or skipped; no input is ever written over. Raises
    InputError where `output` cannot be what it has to be.
    """
    alone = len(inputs) == 1 and not is_folder(inputs[0]) and not _is_pattern(inputs[0])
    if output and not alone and os.path.lexists(output) and not is_folder(output):
        raise InputError(f"{output}: expected a folder to write several files to, found a file")
    for given in inputs:
        if output and is_folder(given) and os.path.realpath(output) == os.path.realpath(given):
            raise InputError(f"--output {output}: expected another folder than the input's, found the same")
    if output and alone and suffix and not is_folder(output):
        raise InputError(
            f"--output {output}: expected a folder that exists, as --format is for many, found a file name"
        )
    plan = Plan(alone=alone)
    if not alone and (output or (len(inputs) == 1 and is_folder(inputs[0]))):
        plan.into = output or _folder_beside(inputs[0])
    found: dict[Path, Path] = {}  # output -> input
    targets: dict[Path, Path] = {}  # the same, of which one may be named in several ways
    for given in inputs:
        try:
            for source, target in _pairs(given, output, plan):
                if suffix and not is_video(source):
                    target = target.with_suffix(suffix)
                other = targets.setdefault(Path(os.path.realpath(target.parent)) / target.name, source)
                if other is source:
                    found[target] = source
                elif os.path.realpath(other) != os.path.realpath(source):
                    text = f"{source} and {other} would both be written to {target}"
                    plan.faults.append(InputError(f"{text}: give them folders of their own"))
        except SadnetError as error:
            plan.faults.append(error)
        except OSError as error:  # a name that is too long, a folder that may not be entered
            plan.faults.append(InputError(f"{given}: expected images or videos, cannot read it: {error.strerror}"))
        except RecursionError:
            plan.faults.append(InputError(f"{given}: expected folders less than about a thousand deep, found more"))
    results = {_beside(source) for source in found.values()}  # the shell's `*.jpg` finds those of an earlier run too
    if suffix:
        results |= {result.with_suffix(suffix) for result in results if not is_video(result)}
    plan.results += [source for source in found.values() if _whole(source) in results]
    found = {target: source for target, source in found.items() if _whole(source) not in results}
    sources = {os.path.realpath(source) for source in found.values()}
    for target, source in found.items():
        if os.path.realpath(target) in sources:
            plan.faults.append(
                OutputError(f"{source} would be written over {target}, an input: choose another --output")
            )
        elif overwrite or not os.path.lexists(target):
            plan.jobs.append(Job(source, target))
        elif skip_existing:
            plan.skipped += 1
        else:
            plan.faults.append(
                OutputError(
                    f"{target} exists already: pass --overwrite to replace it, --skip-existing to leave it, or choose "
                    "another --output"
                )
            )
    return plan


def is_folder(path: Path) -> bool:
    """False where it cannot be told: what is wrong with the path is told where it is opened."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _pairs(given: Path, output: Path | None, plan: Plan) -> Iterator[tuple[Path, Path]]:
    if is_folder(given):
        into = output or _folder_beside(given)
        found = list(_files_below(given, into, plan))
        if not found:
            others = f" but {plan.others}" if plan.left_out else ""
            raise InputError(
                f"{given}: expected a folder with images or videos ({_suffixes()}), found none{others} in it"
            )
        yield from ((source, into / source.relative_to(given)) for source in found)
    elif _is_pattern(given):
        fixed, matches = _matches(given)
        if output and _is_below(output, fixed):  # `**` finds the results of an earlier run
            matches = [match for match in matches if not _is_below(match, output)]
        if not matches:
            raise InputError(f"{given}: expected images or videos ({_suffixes()}), found none of that name")
        yield from ((m, output / m.relative_to(fixed) if output else _beside(m)) for m in matches)
    else:
        yield given, _target(given, output, plan.alone)


def _target(given: Path, output: Path | None, alone: bool) -> Path:
    if not given.exists():
        raise InputError(f"{given}: expected an image or video file or a folder, found nothing of that name")
    if given.suffix.lower() not in SUFFIXES:
        text = f"{given}: expected an image or a video ({_suffixes()}), found {ending(given.suffix)}"
        advice = OTHERS.get(given.suffix.lower())
        raise InputError(f"{text}: {advice}" if advice else text)
    if output is None:
        return _beside(given)
    if not alone or is_folder(output):
        return output / given.name
    allowed = VIDEO_SUFFIXES if is_video(given) else IMAGE_SUFFIXES
    if output.suffix.lower() not in allowed:
        raise InputError(
            f"--output {output}: expected a file name ending in {', '.join(sorted(allowed))}, or a folder that exists, "
            f"found {ending(output.suffix)}"
        )
    return output


def _files_below(folder: Path, skip: Path, plan: Plan) -> Iterator[Path]:
    """Images and videos in a stable order, without hidden ones, linked folders, and the outputs of earlier runs."""

    def unreadable(error: OSError) -> None:
        plan.faults.append(InputError(f"{error.filename}: expected a folder, cannot read it: {error.strerror}"))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(root)
        walked = [
            name
            for name in sorted(folders)
            if not (name.startswith(".") or os.path.realpath(here / name) == os.path.realpath(skip))
            and not (here / name).is_symlink()
        ]
        results = {f"{name}{_DENOISED}" for name in walked}
        plan.results += [here / name for name in walked if name in results]
        folders[:] = [name for name in walked if name not in results]
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and suffix in SUFFIXES:
                yield here / name
            elif not name.startswith(".") and suffix in OTHERS:
                plan.left_out[suffix] += 1


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder that the pattern's fixed part names, and the image and video files that match.

    Not `glob`, which follows links to folders: two that lead back upwards keep it busy for ever.
    """
    parts = list(pattern.parts)
    first = next(i for i, part in enumerate(parts) if _WILD & set(part))
    if ".." in parts[first:]:  # its files would be written outside of the output folder
        raise InputError(f"{pattern}: expected '..' only before the first of * ? [, found it after")
    fixed = Path(*parts[:first])
    found = dict.fromkeys(_expand(fixed, parts[first:]))
    return fixed, [path for path in found if path.suffix.lower() in SUFFIXES and not is_folder(path)]


def _expand(folder: Path, parts: list[str]) -> Iterator[Path]:
    head, *rest = parts
    if head == "**":
        while rest and rest[0] == "**":
            rest = rest[1:]
        yield from _expand(folder, rest or ["*"])
    try:
        with os.scandir(folder) as entries:
            here = sorted((entry.name, is_folder(Path(entry)), entry.is_symlink()) for entry in entries)
    except OSError:  # nothing matches in a folder that cannot be read
        return
    for name, is_directory, is_link in here:
        if name.startswith(".") and not head.startswith("."):
            continue
        if head == "**":
            if is_directory and not is_link:
                yield from _expand(folder / name, parts)
        elif name == head or fnmatch(name, head):
            if not rest:
                yield folder / name
            elif is_directory:
                yield from _expand(folder / name, rest)


def _is_pattern(path: Path) -> bool:
    try:
        return bool(_WILD & set(str(path))) and not os.path.lexists(path)
    except OSError:
        return False


def _folder_beside(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.parent / f"{folder.name}{_DENOISED}"


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_DENOISED}{path.suffix}")


def _whole(path: Path) -> Path:
    """The name of the video that `runtime.video` kept the first frames of, in X.partial.mp4 or X.partial1.mp4."""
    return path.with_stem(re.sub(r"\.partial\d*$", "", path.stem)) if is_video(path) else path


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
