"""Folders of pictures from file to file, beside what the engine takes for them when nothing else is to be done.

Three times of the same pictures, a round each in turn: of the engine alone, which is given all tiles of many pictures
at once; of reading, decoding, encoding and writing, one picture after another; and of the pipeline, which is to hide
the second behind the first. Where all have but one core to run on nothing can be hidden, and the sum is the best there
is.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.images import Picture, read_picture, write_picture
from runtime.denoiser import Denoiser
from runtime.engines import Engine
from runtime.engines.base import Images
from runtime.jobs import Job, make_plan
from runtime.measure import Contender
from runtime.pipeline import Settings, denoise_files
from runtime.report import Row

TOGETHER = 2**27
"""Bytes of pixels that the engine alone is given at once; as tiles of floats they take about five times as much."""


@dataclass
class Folder:
    """Of a contender and a folder; a figure of seconds for each round."""

    label: str
    name: str
    path: Path
    images: int = 0
    pixels: int = 0
    engine: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    """Reading, decoding, encoding and writing."""
    pipeline: list[float] = field(default_factory=list)


def measure_folder(contender: Contender, folder: Path, rounds: int) -> Folder:
    """Every picture below `folder`, denoised into a temporary folder that is removed again.

    Raises InputError where there is none, what a picture raises that cannot be denoised, and what opening the engine
    raises.
    """
    with contender.open() as engine, tempfile.TemporaryDirectory() as made:
        plan = make_plan([folder], Path(made) / "out")
        jobs = [job for job in plan.jobs if not job.video]
        if plan.faults or not jobs:
            raise plan.faults[0] if plan.faults else InputError(f"{folder}: expected images, found only videos")
        timed = _Timed(engine)
        denoiser = Denoiser(timed)
        denoiser.denoise(read_picture(jobs[0].source).pixels)  # warms up
        found = Folder(contender.label, engine.name, folder)
        for _ in range(rounds):
            found.images, found.pixels = _one_by_one(found, denoiser, timed, jobs)
            summary = denoise_files(denoiser, jobs, Settings(overwrite=True))
            if summary.interrupted is not None:
                raise KeyboardInterrupt
            if summary.faults:
                raise summary.faults[0]
            found.pipeline.append(summary.seconds)
    return found


def folder_row(found: Folder) -> Row:
    """The entry of the JSON line: medians of the rounds; `of_engine` is the median of each round's own ratio.

    `hidden` is the part of the time for files that the pipeline did not add to the engine's; noise may take it beyond
    0 and 1.
    """
    engine, files, pipeline = (np.array(times) for times in (found.engine, found.files, found.pipeline))
    ratios = engine / pipeline
    return {
        "engine": found.label,
        "runs_on": found.name,
        "folder": str(found.path),
        "images": found.images,
        "megapixels": round(found.pixels / 1e6, 2),
        "engine_s": round(float(np.median(engine)), 3),
        "files_s": round(float(np.median(files)), 3),
        "pipeline_s": round(float(np.median(pipeline)), 3),
        "engine_images_per_s": round(found.images / float(np.median(engine)), 3),
        "pipeline_images_per_s": round(found.images / float(np.median(pipeline)), 3),
        "of_engine": round(float(np.median(ratios)), 4),
        "of_engine_least": round(float(ratios.min()), 4),
        "hidden": round(float(np.median(1 - (pipeline - engine) / files)), 3),
    }


class _Timed(Engine):
    """Another engine. Where `alone` it is given all of a stream's batches at once, and its seconds are counted."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.channels, self.sizes = engine.name, engine.channels, engine.sizes
        self.details, self.io = engine.details, engine.io
        self.alone, self.seconds = False, 0.0
        self._engine = engine

    def pixels_at_once(self) -> int | None:
        return self._engine.pixels_at_once()

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        if not self.alone:
            yield from self._engine.stream(batches)
            return
        batches = list(batches)
        begun = time.perf_counter()
        results = list(self._engine.stream(batches))
        self.seconds += time.perf_counter() - begun
        yield from results

    def _run(self, images: Images) -> Images:
        return self._engine.run(images)


def _one_by_one(found: Folder, denoiser: Denoiser, timed: _Timed, jobs: Sequence[Job]) -> tuple[int, int]:
    """A round without the pipeline, whose times are added to `found`; returns how many pictures and pixels."""
    timed.alone, timed.seconds = True, 0.0
    files, images, pixels, held = 0.0, 0, 0, list[tuple[Job, Picture]]()

    def denoise() -> float:
        results = list(denoiser.denoise_stream([picture.pixels for _, picture in held]))
        begun = time.perf_counter()
        for (job, picture), result in zip(held, results, strict=True):
            target = job.target.with_name(f"alone_{job.target.name}")
            write_picture(target, Picture(result, picture.alpha, picture.metadata), overwrite=True)
        held.clear()
        return time.perf_counter() - begun

    for job in jobs:
        begun = time.perf_counter()
        picture = read_picture(job.source)
        files += time.perf_counter() - begun
        held.append((job, picture))
        images, pixels = images + 1, pixels + picture.pixels.shape[0] * picture.pixels.shape[1]
        if sum(waiting.pixels.nbytes for _, waiting in held) > TOGETHER:
            files += denoise()
    if held:
        files += denoise()
    timed.alone = False
    found.engine.append(timed.seconds)
    found.files.append(files)
    return images, pixels
