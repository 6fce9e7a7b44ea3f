"""The training loop: steps, validation, logs, and checkpoints that resume exactly (on a GPU up to rounding)."""

import copy
import json
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from common.errors import OutputError, TrainingError
from common.files import TEMPORARY, write_whole
from common.machine import cpu_name
from common.metrics import psnr
from common.padding import pad_to_multiple
from plugins import cpu_sampling
from train.checkpoint import CHECKPOINT, locked, write_checkpoint
from train.config import TrainConfig
from train.data import Bank, Draw, Sampler
from train.graph import GraphedStep
from train.journal import LOG, Journal, cut_log, opened
from train.optimizer import make_optimizer
from train.processes import ALONE, Processes, stop_on_signal
from train.sadnet import SADNet
from train.seams import seam_loss
from train.validation import Noise, held_out, noise_name, validation_noises
from train.weights import gray_of, load_state, save_weights

WEIGHTS = "weights.safetensors"
CARD = "weights.json"
STEPS_UNDER_WAY = 2
"""How far the host runs ahead of a GPU."""


class Trainer:
    """One run in one folder: `checkpoint.pt`, `log.jsonl`, TensorBoard events, and the best weights so far."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        training: Bank,
        validation: Bank,
        fabric: Fabric,
        processes: Processes = ALONE,
    ) -> None:
        self.config, self.folder, self.fabric, self.validation = config, folder, fabric, validation
        self.processes = processes
        share = processes.share(config.data.batch)
        self.sampler = Sampler(training, config.data, config.noise, config.run.seed, config.camera, share)
        torch.manual_seed(config.run.seed)
        self.network = SADNet(config.model)
        last = fabric.device.type == "cuda" or cpu_sampling.usable()  # around `plugins.reference` it would cost time
        self.order = torch.channels_last if last else torch.contiguous_format  # of images and weights in memory
        self.network.to(memory_format=self.order)  # type: ignore[call-overload]  # not in PyTorch's stubs
        o, cuda = config.optimizer, fabric.device.type == "cuda"
        scaled = getattr(fabric.strategy.precision, "scaler", None) is not None  # in fp16
        # a scaled loss is looked at by the host, and several processes wait for each other
        graphed = cuda and config.run.cuda_graph and not scaled and processes.size == 1
        optimizer = make_optimizer(
            self.network.parameters(),
            o,
            fused=not scaled,  # or it unscales the gradients itself, and Fabric cannot clip them
            graphed_on=fabric.device if graphed else None,
        )
        self.network.to(fabric.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False) if o.ema else None
        self.replaced = torch.zeros((), device=fabric.device)  # of the average, in a step; where a graph reads it
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        self.feed = torch.cuda.Stream(fabric.device) if cuda else None
        self._under_way: deque[torch.cuda.Event] = deque()  # the ends of steps that the GPU has not finished
        self._update = GraphedStep(self._train_step) if graphed else self._train_step
        self.step = 0
        self.seconds = 0.0  # of training, over all resumptions
        self.best = -math.inf  # validation PSNR of WEIGHTS
        self.validated = 0  # the last step that was
        self.losses: list[Tensor] = []  # since the last log; this process's own, after the first `shared`
        self.shared = 0
        self.signals: list[int] = []  # that ask it to stop
        self.journal: Journal | None = None  # the first process's, while it runs

    @property
    def released(self) -> SADNet:
        """The network that is validated and released: the moving average where there is one."""
        return self.network if self.average is None else self.average

    def run(self) -> bool:
        """Train until a budget is spent (True), or Ctrl-C or SIGTERM asks to stop (False); the state is saved then.

        Raises TrainingError where the loss or the weights are not finite, OutputError where the folder cannot be
        written or another process trains into it; the last checkpoint then still stands.
        """
        try:
            with ExitStack() as held:
                with self.processes.together():
                    if self.processes.first:
                        self.folder.mkdir(parents=True, exist_ok=True)
                        held.enter_context(locked(self.folder, self.step))
                        for unfinished in self.folder.glob(f"{TEMPORARY}*"):  # a killed run's
                            unfinished.unlink()
                        cut_log(self.folder / LOG, self.step, self.validated)
                return self._run()
        except OSError as error:
            raise OutputError(f"cannot write the run's folder {self.folder}: {error.strerror or error}") from error

    def _run(self) -> bool:
        budget, processes = self.config.run, self.processes
        saved = begun = marked = time.monotonic()
        end = begun + 60 * budget.minutes if budget.minutes else math.inf
        counted, kept, before, pace = self.step, self.step, self.seconds, 0.0
        with stop_on_signal() as signals, ExitStack() as stack, ThreadPoolExecutor(1) as prefetch:
            self.signals = signals
            with processes.together():
                if processes.first:
                    self.journal = stack.enter_context(opened(self.folder, self.config, self.step))
            crops = prefetch.submit(self.sampler.crops, self.step)
            while True:
                now = time.monotonic()
                stopped, over, due = processes.agree(
                    bool(signals) or processes.orphaned,
                    processes.first and now >= end,
                    processes.first and self.step > kept and now + pace - saved > budget.checkpoint_every,
                )
                last = stopped or over or 0 < budget.steps <= self.step
                validate = not stopped and self.validated < self.step
                validate = validate and (last or self.step % budget.validate_every == 0)
                if due or last or validate:  # before validation: a kill in that costs no training
                    self.save()
                    saved, kept = time.monotonic(), self.step
                if validate and not self._validate_and_keep():
                    validate, stopped, last = False, True, True
                if last:
                    if validate:
                        self.save()
                    return not stopped
                started = time.monotonic()
                marked += started - now  # saving and validation are no steps
                batch = crops.result()
                crops = prefetch.submit(self.sampler.crops, self.step + 1)
                self.train_once(*batch)
                now = time.monotonic()
                self.seconds, pace = before + now - begun, now - started
                if self.step % budget.log_every == 0:
                    loss, rate = self._mean(), (self.step - counted) / (now - marked)
                    self._record(
                        loss=loss, lr=self.config.optimizer.rate(self.step - 1), steps_per_second=round(rate, 3)
                    )
                    if self.journal:
                        self.journal.progress(self.step, loss, rate)
                    self.losses, self.shared, counted, marked = [], 0, self.step, now

    def _record(self, **values: float) -> None:
        with self.processes.together():
            if self.journal:
                self.journal.record(self.step, self.seconds, **values)

    def train_once(self, draws: list[Draw], crops: Tensor) -> None:
        """One step, on the host's part of its batch."""
        noisy, clean = self._prepared(draws, crops)
        rate = self.config.optimizer.rate(self.step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.replaced.fill_(1 - self.config.optimizer.kept(self.step))
        self.losses.append(self._update(noisy, clean))
        self.step += 1
        if self.feed is not None:  # or a slow GPU's batches pile up, and the clock would count steps not yet made
            self._under_way.append(torch.cuda.current_stream().record_event())
            if len(self._under_way) > STEPS_UNDER_WAY:
                self._under_way.popleft().synchronize()

    def _train_step(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Weights, moments and average after one more batch; its loss. `GraphedStep` says what may not stand here."""
        o = self.config.optimizer
        denoised = self.model(noisy.contiguous(memory_format=self.order)).float()
        loss = F.mse_loss(denoised, clean) if o.loss == "l2" else F.l1_loss(denoised, clean)
        if o.seams:
            loss = loss + o.seams * seam_loss(self.model, noisy, denoised, self.order)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if o.clip_norm:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=o.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        if self.average is not None:
            with torch.no_grad():
                average: list[Tensor] = list(self.average.parameters())
                change = torch._foreach_sub(list[Tensor](self.network.parameters()), average)
                torch._foreach_mul_(change, self.replaced)
                torch._foreach_add_(average, change)
        return loss.detach()

    def _prepared(self, draws: list[Draw], crops: Tensor) -> tuple[Tensor, Tensor]:
        """The sampler's batch. A GPU makes it on a stream of its own, so that the host, which waits for the transfers,
        does not wait for the step before."""
        if self.feed is None:
            return self.sampler.batch(draws, crops)
        current = torch.cuda.current_stream()
        with torch.cuda.stream(self.feed):
            noisy, clean = self.sampler.batch(draws, crops.pin_memory().to(self.fabric.device, non_blocking=True))
        current.wait_stream(self.feed)
        for tensor in (noisy, clean):
            tensor.record_stream(current)
        return noisy, clean

    def _mean(self) -> float:
        """Mean over all processes of the losses since the last log. NaN stops the run before a checkpoint sees it."""
        if not self.losses:
            return math.nan
        own = torch.stack(self.losses)
        own[self.shared :] = self.processes.total(own[self.shared :]) / self.processes.size
        self.losses, self.shared = list(own), len(own)
        mean = float(own.mean())
        with self.processes.together():
            if not math.isfinite(mean):
                raise TrainingError(f"step {self.step}: expected a finite loss, found {mean}; {self._advice}")
        return mean

    @property
    def _advice(self) -> str:
        path, gentler = self.folder / CHECKPOINT, "a lower --set optimizer.lr or --set run.precision=fp32"
        if path.exists():
            return f"{path} keeps an earlier state: --resume it with {gentler}"
        return f"no checkpoint was written yet: begin again with {gentler}"

    def _validate_and_keep(self) -> bool:
        """PSNR on the held-out images for each kind of noise; better weights than any before are written out. False
        where a signal has come in before it was done."""
        values = {}
        for noise in validation_noises(self.validation, self.config):
            value = self.validate(noise)
            if value is None:
                return False
            values[f"psnr_{noise_name(noise)}"] = value
        mean = float(np.mean(list(values.values())))
        with self.processes.together():
            if not math.isfinite(mean):
                raise TrainingError(f"step {self.step}: expected finite outputs in validation, found PSNR {mean}")
            if mean > self.best and self.processes.first:
                save_weights(self.released, self.folder / WEIGHTS)
                write_whole(self.folder / CARD, json.dumps(self.card(values), indent=1) + "\n", overwrite=True)
        self.best, self.validated = max(mean, self.best), self.step
        self._record(**values)
        return True

    @torch.inference_mode()
    def validate(self, noise: Noise) -> float | None:
        """Mean PSNR in dB over the held-out images' central crops, without autocast; None where any process has got
        a signal before it was done.

        An image counts 100 dB at most, so that an exact one (sigma 0, a new network) leaves a finite mean.
        """
        network, scores = self.released.eval(), torch.zeros(len(self.validation), dtype=torch.float64)
        for first in range(0, len(scores), self.processes.size):
            (stopped,) = self.processes.agree(bool(self.signals))
            if stopped:
                return None
            index = first + self.processes.rank
            if index >= len(scores):
                continue
            noisy, clean = held_out(self.validation, index, noise, self.config)
            x = torch.from_numpy(pad_to_multiple(noisy.transpose(2, 0, 1)[None])).to(self.fabric.device)
            output = network(x)[0, :, : clean.shape[0], : clean.shape[1]].float().cpu().numpy().transpose(1, 2, 0)
            score = psnr(output, clean)
            scores[index] = 100.0 if score > 100 else score
        network.train()
        return float(np.mean(self.processes.total(scores).numpy()))

    def card(self, validation: dict[str, float]) -> dict[str, Any]:
        """What a model card needs to know of the run."""
        device, count = self.fabric.device, self.processes.size
        cpu = f"{cpu_name()}, threads: {torch.get_num_threads()}"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        return {
            "config": self.config.as_dict(),
            "step": self.step,
            "seconds": round(self.seconds),
            "device": name if count == 1 else f"{count} processes, each {name}",
            "torch": torch.__version__,
            "training_images": len(self.sampler.bank),
            "validation_images": len(self.validation),
            "validation": {name: round(value, 3) for name, value in validation.items()},
        }

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; the old one stands otherwise. The first process does.

        Raises OutputError (a full disk, say), and TrainingError where the last step spoiled the weights.
        """
        self._mean()
        with self.processes.together():
            if self.processes.first:
                self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise TrainingError(f"step {self.step}: expected finite weights, found some that are not; {self._advice}")
        state = {
            "config": self.config.as_dict(),
            "network": self.network.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "validated": self.validated,
            "held_out": list(self.validation.names),
            "held_out_sha256": self.validation.digest,
            "losses": [float(loss) for loss in self.losses],
        }
        write_checkpoint(self.folder, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state, as if the run had not stopped."""
        try:
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load_state_dict(state["ema"] or state["network"])
            groups = self.optimizer.param_groups
            own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
            # betas and the like are the configuration's, which --set may have changed; by `fused` the state is placed
            saved = [old | new for old, new in zip(state["optimizer"]["param_groups"], own, strict=True)]
            self.optimizer.load_state_dict({**state["optimizer"], "param_groups": saved})
            for group, values in zip(self.optimizer.param_groups, own, strict=True):
                group.update(values)  # not copies: a graph reads the rate where it lies
            for weight, moments in self.optimizer.state.items():
                for name, value in moments.items():
                    if value.shape == weight.shape:  # fused Adam walks both as they lie in memory
                        moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
            if state["precision"]:  # of a loss that was scaled there; this machine may take another precision
                self.fabric.strategy.precision.load_state_dict(state["precision"])
        except (RuntimeError, ValueError, KeyError) as error:
            text = f"expected a checkpoint of this network and optimizer, found another: {error}"
            raise TrainingError(text) from error
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        held = self.validation.names, self.validation.digest
        if (tuple(state.get("held_out", ())), state.get("held_out_sha256", held[1])) != held:
            self.best = -math.inf  # of other images
        self.validated = state["validated"]
        self.losses = [torch.tensor(loss, device=self.fabric.device) for loss in state["losses"]]
        self.shared = len(self.losses)

    def begin_at(self, released: dict[str, Tensor], source: str) -> None:
        """Begin a new run at released weights, a gray one also at those of a colour network.

        Raises ModelError, which names `source`, where they do not fit.
        """
        first = released.get("res1.conv0.weight")
        if self.config.model.channels == 1 and first is not None and first.shape[1:2] == (3,):
            released = gray_of(released)
        load_state(self.network, released, source)
        if self.average is not None:
            load_state(self.average, released, source)
