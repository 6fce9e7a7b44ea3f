"""Training curves of runs: the loss, smoothed, and the validation's PSNR against the steps."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import whole_file
from train.journal import LOG

FORMATS = (".svg", ".png")
_SCORE = "psnr_"
"""How the names of validation figures begin; what follows is the noise."""


@dataclass(frozen=True)
class Curves:
    """A run's log. Each curve is a list of (step, value)."""

    name: str
    loss: list[tuple[int, float]]
    scores: dict[str, list[tuple[int, float]]]
    """Of each kind of noise."""


def read_curves(run: Path) -> Curves:
    """The log of a run's folder, or a log itself. Raises InputError where there is none, or one without a loss."""
    log = run if run.is_file() else run / LOG
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{run}: expected a run's folder with {LOG}, found none ({error.strerror})") from error
    lines = [numbers for line in text.splitlines() if (numbers := _numbers(line)).keys() > {"step"}]
    loss = [(int(line["step"]), line["loss"]) for line in lines if "loss" in line]
    if not loss:
        raise InputError(f"{log}: expected logged steps, found none: has the run begun?")
    kinds = dict.fromkeys(key for line in lines for key in line if key.startswith(_SCORE))
    scores = {k.removeprefix(_SCORE): [(int(line["step"]), line[k]) for line in lines if k in line] for k in kinds}
    return Curves(log.stem if log == run else run.resolve().name, loss, scores)


def _numbers(line: str) -> dict[str, float]:
    """The finite numbers of a line of the log; none of one that the run is writing, or was when it was killed."""
    try:
        entries = json.loads(line)
    except ValueError:
        return {}
    pairs = entries.items() if isinstance(entries, dict) else ()
    found = {k: v for k, v in pairs if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < math.inf}
    return found if "step" in found else {}


def smooth(points: Sequence[tuple[int, float]], steps: float) -> list[float]:
    """The mean of the values so far, whose weights fall by e every `steps` steps."""
    means, mean, weight = [], 0.0, 0.0
    for (before, _), (step, value) in itertools.pairwise([points[0], *points]):
        kept = float(np.exp(-(step - before) / steps))
        weight = kept * weight + 1
        mean += (value - mean) / weight
        means.append(mean)
    return means


def draw_curves(runs: Sequence[Curves], path: Path, *, steps: float, overwrite: bool) -> None:
    """The plot of all runs; `steps` as in `smooth`. Raises InputError for a name not of FORMATS, OutputError."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: expected a name ending in {' or '.join(FORMATS)}")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = dict.fromkeys(kind for run in runs for kind in run.scores)
    markers = dict(zip(kinds, itertools.cycle("os^Dv"), strict=False))
    figure = Figure(figsize=(8, 5.5 if kinds else 3), layout="constrained")
    panels = figure.subplots(2 if kinds else 1, sharex=True, squeeze=False)[:, 0]
    panels[0].set(ylabel="loss")
    panels[-1].set(xlabel="steps")
    for index, run in enumerate(runs):
        colour, (at, loss) = f"C{index}", zip(*run.loss, strict=True)
        panels[0].plot(at, loss, color=colour, alpha=0.25, linewidth=0.8)
        panels[0].plot(at, smooth(run.loss, steps), color=colour, linewidth=1.8, label=run.name)
        for kind, points in run.scores.items():
            style = {"color": colour, "marker": markers[kind], "markersize": 4, "label": f"{run.name}, {kind}"}
            panels[1].plot(*zip(*points, strict=True), **style)
    low, high = (extreme(value for run in runs for _, value in run.loss) for extreme in (min, max))
    if low > 0 and high / low > 10:
        panels[0].set_yscale("log")
    else:
        panels[0].ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
    if kinds:
        panels[1].set_ylabel("validation PSNR, dB")
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    # without the date and random names the same log gives the same file
    with rc_context({"svg.hashsalt": "sadnet"}), whole_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
