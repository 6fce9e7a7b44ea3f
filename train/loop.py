"""The training loop: steps, validation, logs, and checkpoints that resume exactly."""

import io
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from common.errors import ModelError, OutputError, TrainingError
from common.files import TEMPORARY, whole_file, write_whole
from common.machine import cpu_name
from common.metrics import psnr
from common.padding import pad_to_multiple
from plugins import cpu_op
from train.config import TrainConfig
from train.data import Bank, Sampler
from train.sadnet import SADNet
from train.validation import Noise, held_out, noise_name, validation_noises
from train.weights import save_weights

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
CARD = "weights.json"
LOG = "log.jsonl"


class Trainer:
    """One run in one folder: `checkpoint.pt`, `log.jsonl`, TensorBoard events, and the best weights so far."""

    def __init__(self, config: TrainConfig, folder: Path, training: Bank, validation: Bank, fabric: Fabric) -> None:
        self.config, self.folder, self.fabric, self.validation = config, folder, fabric, validation
        self.sampler = Sampler(training, config.data, config.noise, config.run.seed, config.camera)
        torch.manual_seed(config.run.seed)
        self.network = SADNet(config.model)
        if fabric.device.type == "cuda" or cpu_op.usable():  # around `plugins.reference` it would cost time
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
        o = config.optimizer
        kind = torch.optim.AdamW if o.weight_decay else torch.optim.Adam
        optimizer = kind(
            self.network.parameters(), o.lr, (o.beta1, o.beta2), o.eps, weight_decay=o.weight_decay, fused=True
        )
        self.network.to(fabric.device)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(o.ema)) if o.ema else None
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        self.step = 0
        self.seconds = 0.0  # of training, over all resumptions
        self.best = -math.inf  # validation PSNR of WEIGHTS
        self.losses: list[torch.Tensor] = []  # since the last log

    @property
    def released(self) -> SADNet:
        """The network that is validated and released: the moving average where there is one."""
        if self.ema is None or not int(self.ema.n_averaged):
            return self.network
        module = self.ema.module
        assert isinstance(module, SADNet)
        return module

    def run(self) -> bool:
        """Train until a budget is spent (True), or Ctrl-C or SIGTERM asks to stop (False); the state is saved then.

        Raises TrainingError where the loss or the weights are not finite, OutputError where the folder cannot be
        written; the last checkpoint then still stands.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(f"{TEMPORARY}*"):  # a killed run's
                unfinished.unlink()
            _cut_log(self.folder / LOG, self.step)
            return self._run()
        except OSError as error:
            raise OutputError(f"cannot write the run's folder {self.folder}: {error.strerror or error}") from error

    def _run(self) -> bool:
        budget = self.config.run
        end = time.monotonic() + 60 * budget.minutes if budget.minutes else math.inf
        saved = begun = marked = time.monotonic()
        counted, before = self.step, self.seconds
        with (
            _stop_on_signal() as stop,
            self._bar() as advance,
            SummaryWriter(str(self.folder), purge_step=self.step + 1) as board,
            open(self.folder / LOG, "a", buffering=1) as log,
            ThreadPoolExecutor(1) as prefetch,
        ):

            def record(**values: Any) -> None:
                log.write(json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **values}) + "\n")
                for name, value in values.items():
                    board.add_scalar(name, value, self.step)

            crops = prefetch.submit(self.sampler.crops, self.step)
            while not stop and time.monotonic() < end and not 0 < budget.steps <= self.step:
                draws, host = crops.result()
                crops = prefetch.submit(self.sampler.crops, self.step + 1)
                self.losses.append(self._train_step(*self.sampler.batch(draws, self._upload(host))))
                self.step += 1
                now = time.monotonic()
                self.seconds = before + now - begun
                if self.step % budget.log_every == 0:
                    loss = self._mean()
                    rate = (self.step - counted) / (now - marked)
                    record(loss=loss, lr=self.config.optimizer.rate(self.step - 1), steps_per_second=round(rate, 3))
                    advance(self.step, loss, rate)
                    self.losses, counted, marked = [], self.step, now
                if self.step % budget.validate_every == 0:
                    self._mean()
                    record(**self._validate_and_keep())
                if time.monotonic() - saved > budget.checkpoint_every:  # validation takes its time too
                    self._mean()
                    self.save()
                    saved = time.monotonic()
            self._mean()
            if self.step % budget.validate_every and not stop:
                record(**self._validate_and_keep())
            self.save()
        return not stop

    def _train_step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = o.rate(self.step)
        denoised = self.model(noisy.contiguous(memory_format=torch.channels_last)).float()
        loss = F.mse_loss(denoised, clean) if o.loss == "l2" else F.l1_loss(denoised, clean)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if o.clip_norm:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=o.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return loss.detach()

    def _upload(self, crops: torch.Tensor) -> torch.Tensor:
        if self.fabric.device.type == "cuda":
            return crops.pin_memory().to(self.fabric.device, non_blocking=True)
        return crops

    def _mean(self) -> float:
        """Mean of the losses since the last log. NaN stops the run before it reaches a checkpoint."""
        if not self.losses:
            return math.nan
        mean = float(torch.stack(self.losses).mean())
        if not math.isfinite(mean):
            raise TrainingError(f"step {self.step}: expected a finite loss, found {mean}; {self._advice}")
        return mean

    @property
    def _advice(self) -> str:
        path, gentler = self.folder / CHECKPOINT, "a lower --set optimizer.lr or --set run.precision=fp32"
        if path.exists():
            return f"{path} keeps an earlier state: --resume it with {gentler}"
        return f"no checkpoint was written yet: begin again with {gentler}"

    def _validate_and_keep(self) -> dict[str, float]:
        """PSNR on the held-out images for each kind of noise; better weights than any before are written out."""
        kinds = validation_noises(self.validation, self.config)
        values = {f"psnr_{noise_name(noise)}": self.validate(noise) for noise in kinds}
        mean = float(np.mean(list(values.values())))
        if not math.isfinite(mean):
            raise TrainingError(f"step {self.step}: expected finite outputs in validation, found PSNR {mean}")
        if mean > self.best:
            self.best = mean
            save_weights(self.released, self.folder / WEIGHTS)
            write_whole(self.folder / CARD, json.dumps(self.card(values), indent=1) + "\n", overwrite=True)
        return values

    @torch.inference_mode()
    def validate(self, noise: Noise) -> float:
        """Mean PSNR in dB over the held-out images' central crops, without autocast.

        An image counts 100 dB at most, so that an exact one (sigma 0, a new network) leaves a finite mean.
        """
        network, scores = self.released.eval(), []
        for index in range(len(self.validation)):
            noisy, clean = held_out(self.validation, index, noise, self.config)
            x = torch.from_numpy(pad_to_multiple(noisy.transpose(2, 0, 1)[None])).to(self.fabric.device)
            output = network(x)[0, :, : clean.shape[0], : clean.shape[1]].float().cpu().numpy().transpose(1, 2, 0)
            score = psnr(output, clean)
            scores.append(100.0 if score > 100 else score)
        network.train()
        return float(np.mean(scores))

    def card(self, validation: dict[str, float]) -> dict[str, Any]:
        """What a model card needs to know of the run."""
        device, cpu = self.fabric.device, f"{cpu_name()}, {torch.get_num_threads()} threads"
        return {
            "config": self.config.as_dict(),
            "step": self.step,
            "seconds": round(self.seconds),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
            "torch": torch.__version__,
            "training_images": len(self.sampler.bank),
            "validation_images": len(self.validation),
            "validation": {name: round(value, 3) for name, value in validation.items()},
        }

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; the old one stands otherwise.

        Raises OutputError (a full disk, say), and TrainingError where the last step spoiled the weights.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise TrainingError(f"step {self.step}: expected finite weights, found some that are not; {self._advice}")
        state = {
            "config": self.config.as_dict(),
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "losses": [float(loss) for loss in self.losses],
        }
        # by way of memory: torch.save to a path hides a full disk behind a RuntimeError
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with whole_file(self.folder / CHECKPOINT, overwrite=True) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state, as if the run had not stopped."""
        try:
            self.network.load_state_dict(state["network"])
            if self.ema is not None and state["ema"] is not None:
                self.ema.load_state_dict(state["ema"])
            groups = self.optimizer.param_groups
            own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, values in zip(self.optimizer.param_groups, own, strict=True):
                group.update(values)  # betas and the like are the configuration's, which --set may have changed
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        except (RuntimeError, ValueError, KeyError) as error:
            text = f"expected a checkpoint of this network and optimizer, found another: {error}"
            raise TrainingError(text) from error
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.losses = [torch.tensor(loss, device=self.fabric.device) for loss in state.get("losses", [])]

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        """Yields advance(step, loss, steps a second): a bar on a terminal, a line now and then elsewhere."""
        run, batch = self.config.run, self.config.data.batch
        if not sys.stderr.isatty():

            def line(step: int, loss: float, rate: float) -> None:
                print(f"step {step}  loss {loss:.6f}  {rate:.2f} steps/s  {rate * batch:.0f} crops/s", flush=True)

            yield line
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            total = run.steps - self.step if run.steps else run.minutes * 60
            task, first, begun = progress.add_task("training", total=total), self.step, time.monotonic()

            def advance(step: int, loss: float, rate: float) -> None:
                done = step - first if run.steps else time.monotonic() - begun
                text = f"step {step}  loss {loss:.6f}  {rate:.2f} steps/s  {rate * batch:.0f} crops/s"
                progress.update(task, completed=done, description=text)

            yield advance


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a run's folder. Raises ModelError where there is none or it is damaged."""
    path = folder / CHECKPOINT
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"config", "network", "ema", "optimizer", "precision", "step", "seconds", "best"} <= state.keys():
            raise ValueError(f"only {', '.join(map(str, state))}")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: expected a checkpoint of train/run.py, found no such file") from error
    except Exception as error:  # torch.load raises whatever the damaged pickle makes it
        text = f"{path}: expected a checkpoint of train/run.py, found a file that does not load: {error}"
        raise ModelError(text) from error
    return state


def _cut_log(path: Path, step: int) -> None:
    """Forget what a killed run logged after its last checkpoint: those steps are about to be run again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _logged_step(line) <= step]
        write_whole(path, "".join(line + "\n" for line in lines), overwrite=True)


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by the kill
        return math.inf


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Yields a list that a SIGINT or SIGTERM is put into: the step in progress ends first. A second one interrupts."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
