"""Where the time of a training step goes, by torch.profiler, on random images.

    python train/step_profile.py --config train/configs/blind_color.toml
    python train/step_profile.py --config train/configs/blind_color.toml --set data.batch=16 data.crop=128

Prints steps a second, which are measured first, without the profiler; then each kind of work's share of the time, on
the GPU where there is one. docs/training.md keeps the figures.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from common import cli

with cli.needs("dev", __name__):
    import numpy as np
    import torch
    from torch.autograd.profiler_util import FunctionEventAvg
    from torch.profiler import ProfilerActivity, profile

    from common.machine import cpu_name
    from train import config as configuration
    from train.data import Bank
    from train.graph import WARM_UP
    from train.loop import Trainer
    from train.processes import ALONE
    from train.run import make_fabric

KINDS = {
    "sampling, backward": (
        "sadnet::sample_backward",
        "sadnet_sample_backward",
        "grid_sampler_2d_backward",
        "deform_conv2d_backward",
        "deformable_col2im",
    ),
    "sampling, forward": (
        "sadnet::sample",
        "sadnet_sample",
        "grid_sampler",
        "deform_conv2d",
        "deformable_im2col",
    ),
    "convolutions, backward": ("convolution_backward", "conv2d_backward", "dgrad", "wgrad"),
    "convolutions, forward": ("conv", "winograd", "implicit"),
    "matrix products": ("mm", "gemm"),
    "copies and casts": ("copy", "::cat", "clone", "memcpy", "contiguous"),
    "optimizer, average, clipping": ("adam", "lerp", "foreach", "_norm", "multi_tensor"),
}
"""Parts of the names of operators (CPU) and of kernels (GPU), tried from the top. The sampling is that of the
deformable convolutions, whose products with the weights are matrix products or convolutions; so are most of Muon's."""

app = cli.application("Profile training steps on random images.")


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="TOML file of a run")],
    steps: Annotated[int, typer.Option(help="steps to measure, and as many to profile", min=1)] = 5,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over the configuration")] = None,
) -> None:
    """Print steps a second and the share of each kind of work."""
    settings = configuration.load(config, set_ or [])
    side = settings.data.crop + 64
    shape = (side, side, settings.model.channels)
    pixels = np.random.default_rng(0).integers(0, 256, side * side * shape[2], dtype=np.uint8)
    bank = Bank(("random",), (shape,), pixels)
    fabric = make_fabric(settings, ALONE)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, Path(folder), bank, bank, fabric)
    _timed(trainer, WARM_UP + 1)  # allocators, cuDNN's choice of algorithms, a CUDA graph
    seconds = _timed(trainer, steps)
    cuda = fabric.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds, acc_events=True) as profiled:  # or it warns
        _timed(trainer, steps)

    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        times[kind_of(event.key)] += _own_time(event, cuda)
    device = torch.cuda.get_device_name() if cuda else f"{cpu_name()}, threads: {torch.get_num_threads()}"
    data = settings.data
    print(f"{device}, torch {torch.__version__}, {data.batch}x{data.crop}x{data.crop}, {settings.run.precision}")
    print(f"{steps / seconds:.2f} steps/s")
    for kind, value in times.most_common():
        print(f"{kind:30} {100 * value / times.total():5.1f} %")


def kind_of(name: str) -> str:
    """The kind of work of an operator or kernel of that name."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "the rest")


def _timed(trainer: Trainer, steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        trainer.train_once(*trainer.sampler.crops(trainer.step))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _own_time(event: FunctionEventAvg, cuda: bool) -> int:
    if not cuda:
        return round(event.self_cpu_time_total)
    # an operator's entry repeats the time of its kernels, which have entries of their own
    return round(event.self_device_time_total) if event.device_type.name == "CUDA" else 0


if __name__ == "__main__":
    cli.run(app, several=("--set",))
