"""Folders of pictures from file to file, beside what the engine takes for them when nothing else is to be done.

Three times of the same pictures, a round each in turn: of the engine alone, which is given all tiles of many pictures
at once; of reading, decoding, encoding and writing, one picture after another; and of the pipeline, which is to hide
the second behind the first. Where all have but one core to run on nothing can be hidden, and the sum is the best there
is: what the engine has of the pipeline's processor time is then the figure, which other programs hardly change.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.images import Picture, read_picture, write_picture
from runtime.denoiser import Denoiser
from runtime.engines import Engine
from runtime.engines.base import Images
from runtime.jobs import Job, is_folder, make_plan
from runtime.measure import Contender
from runtime.pipeline import Settings, denoise_files
from runtime.report import Row

TOGETHER = 2**27
"""Bytes of pixels that the engine alone is given at once; as tiles of floats they take about five times as much."""


Times = NDArray[np.float64]
"""Seconds: by the clock, and of the processor in all threads."""


@dataclass
class Folder:
    """Of a contender and a folder; an entry for each round."""

    label: str
    name: str
    path: Path
    images: int = 0
    pixels: int = 0
    engine: list[Times] = field(default_factory=list)
    files: list[Times] = field(default_factory=list)
    """Reading, decoding, encoding and writing."""
    pipeline: list[Times] = field(default_factory=list)


def measure_folder(
    contender: Contender, folder: Path, rounds: int, report: Callable[[int], None] = lambda done: None
) -> Folder:
    """Every picture below `folder`, denoised into a temporary folder that is removed again; `report` is called with the
    number of rounds done.

    Raises InputError where there is none or `folder` is none, what a picture raises that cannot be denoised, and what
    opening the engine raises.
    """
    if not is_folder(folder):
        instead = "a file" if os.path.lexists(folder) else "nothing of that name"
        raise InputError(f"--pipeline {folder}: expected a folder of pictures, found {instead}")
    with contender.open() as engine, tempfile.TemporaryDirectory() as made:
        plan = make_plan([folder], Path(made) / "out")
        jobs = [job for job in plan.jobs if not job.video]
        if plan.faults or not jobs:
            raise plan.faults[0] if plan.faults else InputError(f"{folder}: expected images, found only videos")
        timed = _Timed(engine)
        denoiser = Denoiser(timed)
        found = Folder(contender.label, engine.name, folder)
        _one_by_one(Folder(contender.label, engine.name, folder), denoiser, timed, jobs)  # each shape warms up
        for done in range(1, rounds + 1):
            found.images, found.pixels = _one_by_one(found, denoiser, timed, jobs)
            begun = _now()
            summary = denoise_files(denoiser, jobs, Settings(overwrite=True))
            if summary.interrupted is not None:
                raise KeyboardInterrupt
            if summary.faults:
                raise summary.faults[0]
            found.pipeline.append(_now() - begun)
            report(done)
    return found


def folder_row(found: Folder) -> Row:
    """The entry of the JSON line: medians of the rounds.

    of_engine is the engine's time alone to the pipeline's, and of_processor_time the same of processor time: what one
    core could reach. Another program's load on the one or the other takes of_engine anywhere, even beyond 1.
    """
    engine, files, pipeline = (np.array(times) for times in (found.engine, found.files, found.pipeline))
    ratios = engine / pipeline
    (engine_s, _), (files_s, _), (pipeline_s, _) = (np.median(times, 0) for times in (engine, files, pipeline))
    of_engine, of_processor = np.median(ratios, 0)
    return {
        "engine": found.label,
        "runs_on": found.name,
        "folder": str(found.path),
        "images": found.images,
        "megapixels": round(found.pixels / 1e6, 2),
        "engine_s": round(float(engine_s), 3),
        "files_s": round(float(files_s), 3),
        "pipeline_s": round(float(pipeline_s), 3),
        "engine_images_per_s": round(float(found.images / engine_s), 3),
        "pipeline_images_per_s": round(float(found.images / pipeline_s), 3),
        "of_engine": round(float(of_engine), 4),
        "of_engine_range": [round(float(end), 4) for end in (ratios[:, 0].min(), ratios[:, 0].max())],
        "of_processor_time": round(float(of_processor), 4),
    }


def _now() -> Times:
    return np.array((time.perf_counter(), time.process_time()))


class _Timed(Engine):
    """Another engine. Where `alone` it is given all of a stream's batches at once, and its seconds are counted."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.channels, self.sizes = engine.name, engine.channels, engine.sizes
        self.details, self.io = engine.details, engine.io
        self.alone, self.seconds = False, np.zeros(2)
        self._engine = engine

    def pixels_at_once(self) -> int | None:
        return self._engine.pixels_at_once()

    def _stream(self, batches: Iterable[Images]) -> Iterator[Images]:
        if not self.alone:
            yield from self._engine.stream(batches)
            return
        batches = list(batches)
        begun = _now()
        results = list(self._engine.stream(batches))
        self.seconds = self.seconds + _now() - begun
        yield from results

    def _run(self, images: Images) -> Images:
        return self._engine.run(images)


def _one_by_one(found: Folder, denoiser: Denoiser, timed: _Timed, jobs: Sequence[Job]) -> tuple[int, int]:
    """A round without the pipeline, whose times are added to `found`; returns how many pictures and pixels."""
    timed.alone, timed.seconds = True, np.zeros(2)
    files, images, pixels, held = np.zeros(2), 0, 0, list[tuple[Job, Picture]]()

    def denoise() -> Times:
        results = list(denoiser.denoise_stream([picture.pixels for _, picture in held]))
        begun = _now()
        for (job, picture), result in zip(held, results, strict=True):
            target = job.target.with_name(f"alone_{job.target.name}")
            write_picture(target, Picture(result, picture.alpha, picture.metadata), overwrite=True)
        held.clear()
        return _now() - begun

    for job in jobs:
        begun = _now()
        picture = read_picture(job.source)
        files += _now() - begun
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
