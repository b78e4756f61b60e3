"""Training a codec: reconstruction, residual codebooks, semantic distillation, discriminators.

One generator pass per step; the discriminators learn on its detached output, then judge it (SpeechTokenizer's loop,
arXiv 2308.16692 §3.3). Everything random is a function of (seed, step), so a resumed run goes on as if never stopped.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.errors import CheckpointError, ConfigError, MissingExtra
from vokens.models.codec import Codec, CodecOutput
from vokens.train import losses as L
from vokens.train.balancer import Balancer
from vokens.train.build import build_codec, build_discriminators, mel_recipe, parameter_groups, schedule
from vokens.train.config import TrainConfig, to_dict
from vokens.train.data import Batch, Crops, Rows, pcm_rows, read_clips
from vokens.train.log import Board, Progress
from vokens.train.state import Average, Metrics, checkpoints, load_checkpoint, save_checkpoint
from vokens.train.teacher import RATE, Teacher, load_teacher, teacher_rows

ON_WAVE = (
    "wave",
    "mel",
    "stft",
    "spectrum",
    "adversarial",
    "feature",
)  # losses that are functions of the output wave
FIT_BATCHES = 32  # for k-means: 32 batches of 16 s are 25,600 latents, 25 for each of 1024 entries


class CodecTrainer:
    """A run: build it from a TrainConfig, then `run()`.

    Raises ConfigError for settings that do not fit together, before any heavy work.
    """

    def __init__(self, config: TrainConfig) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as error:
            raise MissingExtra("accelerate", "train", "training") from error
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.out = config, Path(config.out)
        # Buffers (codebooks, spectral norms) are equal on all processes by construction.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        self.accelerator: Any = Accelerator(mixed_precision=config.precision, kwargs_handlers=[ddp])
        self.device: torch.device = self.accelerator.device
        torch.manual_seed(config.seed)
        self.model = build_codec(config)
        self.hop = self.model.hop_length
        self.teacher = self._load_teacher()
        if self.teacher is None:
            self.model.semantic.requires_grad_(False)  # DDP waits for every gradient
        self.discriminators = build_discriminators(config.adversarial)
        self.mel = L.MelLoss(*mel_recipe(config.mel, self.model.sample_rate)).to(self.device)
        self.stft = L.STFTLoss().to(self.device)
        self.spectrum = L.SpectrumLoss()
        self._check_losses()
        on_wave = {name: weight for name, weight in config.losses.items() if name in ON_WAVE}
        self.balancer = Balancer(on_wave).to(self.device) if config.balance else None
        self.crops, self.valid = self._load_data()
        self._prepare()
        self.step = 0

    # Building ----------------------------------------------------------------------------------------------

    def _load_teacher(self) -> Teacher | None:
        kind = self.config.teacher.kind
        if not kind:
            return None
        teacher = load_teacher(kind, self.config.teacher.source, self.config.teacher.layer, str(self.device))
        if self.model.config.semantic_dim != teacher.width:
            raise ConfigError(
                f"the teacher's features are {teacher.width} wide, model.semantic_dim is "
                f"{self.model.config.semantic_dim}: set model.semantic_dim = {teacher.width}"
            )
        if self.model.sample_rate != RATE:
            raise ConfigError(f"teachers hear {RATE} Hz, the codec works at {self.model.sample_rate} Hz")
        return teacher

    def _check_losses(self) -> None:
        names, judged = set(self.config.losses), {"adversarial", "feature"}
        if ("distill" in names) != (self.teacher is not None):
            raise ConfigError(
                'give losses.distill exactly when there is a teacher (teacher.kind = "" is none)'
            )
        if bool(self.config.adversarial.kinds) != judged.issubset(names) or (
            names & judged and not self.discriminators
        ):
            raise ConfigError(
                "give losses.adversarial and losses.feature exactly when adversarial.kinds is not empty"
            )

    def _load_data(self) -> tuple[Crops, Crops | None]:
        data = self.config.data
        crop = round(data.seconds * self.model.sample_rate / self.hop) * self.hop
        with self.accelerator.main_process_first():  # the others then find the caches made
            train = self._crops(data.train, data.train_split, crop)
            valid = self._crops(data.valid, data.valid_split, crop) if data.valid else None
        return train, valid

    def _crops(self, source: str, split: str | None, crop: int) -> Crops:
        data, rate = self.config.data, self.model.sample_rate
        clips = read_clips(source, split)
        pcm = pcm_rows(Path(data.cache), clips, rate, data.workers)
        features: Rows | None = None
        if self.teacher is not None and self.config.teacher.cached:
            features = teacher_rows(self.teacher, Path(data.cache), clips, pcm, data.workers)
        return Crops(
            pcm,
            sample_rate=rate,
            crop=crop,
            hop=self.hop,
            batch_size=data.batch_size,
            seed=self.config.seed,
            teacher=features,
            grid=self.teacher.grid if self.teacher else (0.02, 0.01),
        )

    def _prepare(self) -> None:
        optim, judge = self.config.optim, self.config.adversarial
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, optim.weight_decay), lr=optim.learning_rate, betas=optim.betas
        )
        self.average = Average(self.model.to(self.device), self.config.ema) if self.config.ema else None
        self.module, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.discriminators is not None:
            rate = judge.learning_rate or optim.learning_rate
            optimizer = torch.optim.AdamW(
                self.discriminators.parameters(), lr=rate, betas=optim.betas, weight_decay=0.0
            )
            self.judges, self.judge_optimizer = self.accelerator.prepare(self.discriminators, optimizer)

    # One step ----------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """One optimizer step of the generator, and of the discriminators where they take part; the losses' values."""
        config = self.config
        adversarial = self.discriminators is not None and self.step >= config.adversarial.start
        self._set_rates(adversarial)
        if config.fit_codebooks and self.step == config.fit_codebooks:
            self._fit_codebooks()
        torch.manual_seed(config.seed + self.step)
        self.module.train()
        report: dict[str, Tensor] = {}
        waves = []
        self.optimizer.zero_grad()
        for part in range(config.accumulate):
            batch, generator, keep = self._batch(part)
            last = part == config.accumulate - 1
            with self._synced(self.module, last), self.accelerator.autocast():
                output = self._forward(batch, keep, generator)
            if adversarial:
                report |= self._judge_step(batch.wave, output.wave.detach(), part)
            values = self._losses(batch, output, adversarial)
            with self._synced(self.module, last):
                self.accelerator.backward(self._total(values, output.wave) / config.accumulate)
            report |= values
            waves.append(batch.wave)
        if config.optim.clip:
            report["gradient"] = self.accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        return {name: float(value.detach()) for name, value in report.items()}

    def _batch(self, part: int) -> tuple[Batch, torch.Generator, Tensor | None]:
        """Micro-batch `part` of this step, its generator (the same on every process), and codebooks to keep (B,)."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        number = self.step * self.config.accumulate + part
        batch = self.crops.batch(number, rank, world)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        keep = None
        if self.config.codebook_dropout:
            total, size = self.model.num_codebooks, len(batch.wave)
            drawn = torch.randint(1, total + 1, (world * size,), generator=generator)
            dropped = torch.rand(world * size, generator=generator) < self.config.codebook_dropout
            keep = torch.where(dropped, drawn, total)[rank * size : (rank + 1) * size].to(self.device)
        teacher = batch.teacher
        if teacher is None and self.teacher is not None:
            teacher = self._features(batch)
        moved = Batch(
            batch.wave.to(self.device), batch.lengths, None if teacher is None else teacher.to(self.device)
        )
        return moved, generator, keep

    def _features(self, batch: Batch) -> Tensor:
        """Teacher features of crops, on the fly: (B, T, S) at the codec's frames."""
        assert self.teacher is not None
        spacing, first = self.teacher.grid
        middles = (np.arange(batch.wave.shape[1] // self.hop) + 0.5) * self.hop / RATE
        rows = []
        for wave in batch.wave.numpy():
            found = self.teacher.features(wave)
            place = (middles - first) / spacing
            rows.append(np.stack([np.interp(place, np.arange(len(found)), column) for column in found.T], 1))
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def _forward(self, batch: Batch, keep: Tensor | None, generator: torch.Generator) -> CodecOutput:
        quantize = self.step >= self.config.fit_codebooks
        return self.module(batch.wave, keep=keep, generator=generator, quantize=quantize)

    def _losses(self, batch: Batch, output: CodecOutput, adversarial: bool) -> dict[str, Tensor]:
        wanted, wave = self.config.losses, output.wave.float()
        values: dict[str, Tensor] = {}
        if "wave" in wanted:
            values["wave"] = L.wave_l1(wave, batch.wave)
        if "mel" in wanted:
            values["mel"] = self.mel(wave, batch.wave)
        if "stft" in wanted:
            values["stft"] = self.stft(wave, batch.wave)
        if "spectrum" in wanted:
            values["spectrum"] = self.spectrum(wave, batch.wave)
        if "commit" in wanted:
            values["commit"] = output.commit
        if "distill" in wanted and batch.teacher is not None:
            distill = {"d_axis": L.d_axis, "t_axis": L.t_axis}[self.config.teacher.loss]
            frames = (-(-batch.lengths // self.hop)).to(self.device)
            values["distill"] = distill(output.semantic.float(), batch.teacher, frames)
        if adversarial:
            values |= self._judged(batch.wave, wave)
        return values

    def _judged(self, target: Tensor, wave: Tensor) -> dict[str, Tensor]:
        settings = self.config.adversarial
        assert self.discriminators is not None  # the caller says adversarial
        matching = {"published": L.feature_matching, "normalised": L.normalised_feature_matching}[
            settings.feature
        ]
        with self.accelerator.autocast():
            with torch.no_grad():
                real = self.discriminators(target.unsqueeze(1))
            fake = self.discriminators(wave.unsqueeze(1))
        return {
            "adversarial": torch.stack(
                [L.ADVERSARIAL[settings.loss].generator(logits) for logits, _ in fake]
            ).sum(),
            "feature": torch.stack([matching(r[1], f[1]) for r, f in zip(real, fake, strict=True)]).sum(),
        }

    def _judge_step(self, target: Tensor, wave: Tensor, part: int) -> dict[str, Tensor]:
        """The discriminators learn to tell the target from the output."""
        if part == 0:
            self.judge_optimizer.zero_grad()
        self.judges.requires_grad_(True)
        last = part == self.config.accumulate - 1
        loss = L.ADVERSARIAL[self.config.adversarial.loss].discriminator
        with self._synced(self.judges, last):
            with self.accelerator.autocast():  # both in one pass: DDP expects one forward for each backward
                judged = self.judges(torch.cat([target, wave]).unsqueeze(1))
            halves = [[logits.chunk(2) for logits in logits_of] for logits_of, _ in judged]
            total = torch.stack(
                [loss([r for r, _ in pairs], [f for _, f in pairs]) for pairs in halves]
            ).sum()
            self.accelerator.backward(total / self.config.accumulate)
        if last:
            self.judge_optimizer.step()
        self.judges.requires_grad_(False)
        return {"discriminator": total}

    def _total(self, values: dict[str, Tensor], wave: Tensor) -> Tensor:
        weights = {name: self.config.losses[name] for name in values}
        if self.balancer is None:
            return L.weighted_sum(values, weights)
        on_wave = {name: value for name, value in values.items() if name in ON_WAVE}
        rest = {name: value for name, value in values.items() if name not in ON_WAVE}
        balanced = self.balancer(on_wave, wave)
        return balanced + L.weighted_sum(rest, {name: weights[name] for name in rest}) if rest else balanced

    def _synced(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged in the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    def _set_rates(self, adversarial: bool) -> None:
        factor = schedule(self.config.optim, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.learning_rate * factor
        if adversarial:
            base = self.config.adversarial.learning_rate or self.config.optim.learning_rate
            for group in self.judge_optimizer.param_groups:
                group["lr"] = base * factor

    @torch.no_grad()
    def _fit_codebooks(self) -> None:
        self.model.eval()
        world = self.accelerator.num_processes
        first = self.step * self.config.accumulate
        waves = (
            self.crops.batch(first + i, r, world).wave
            for i in range(-(-FIT_BATCHES // world))
            for r in range(world)
        )
        latents = [self.model.latent(wave.to(self.device)).flatten(0, 1).float() for wave in waves]
        generator = torch.Generator().manual_seed(self.config.seed)
        self.model.quantizer.fit(torch.cat(latents), generator)

    # The run -----------------------------------------------------------------------------------------------

    def run(self, resume: bool = True) -> Path:
        """Train to config.steps; the folder of the trained codec, which `vokens.load` opens.

        Ctrl-C and SIGTERM finish the step, save, and return; run again with resume to go on.
        """
        main = self.accelerator.is_main_process
        if resume:
            self._resume()
        elif main:
            for old in checkpoints(self.out / "checkpoints"):
                old.unlink()
        progress = Progress(self.config.steps, self.step, main)
        board = Board(self.out / "tensorboard", self.model.sample_rate) if main else None
        metrics = Metrics(self.out / "metrics.jsonl", self.step) if main else None
        with _stop_signals() as stopped:
            while self.step < self.config.steps and not stopped:
                values = self.train_step()
                progress.step()
                if self.step % self.config.log_every == 0 and board and metrics:
                    values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
                    metrics.write(self.step, values)
                    board.scalars(self.step, {f"train/{name}": value for name, value in values.items()})
                    progress.show(values)
                if self.step % self.config.validate_every == 0 and board and metrics:
                    measured = self.validate(board)
                    metrics.write(self.step, measured)
                    progress.say(
                        f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items())
                    )
                if self.step % self.config.save_every == 0:
                    self.save()
            if stopped:
                progress.say(f"stopped at step {self.step}: saved; run the same command to go on")
        self.save()
        progress.close()
        if board and metrics:
            board.close()
            metrics.close()
        return self.out

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance for 1, 2, 4, … codebooks, and codebook use, of the averaged weights."""
        if self.valid is None or self.step < self.config.fit_codebooks:
            return {}
        model = self.final_model()
        count = min(32, len(self.valid.pcm))
        batch = self.valid.fixed(
            [round(i * (len(self.valid.pcm) - 1) / max(1, count - 1)) for i in range(count)]
        )
        wave = batch.wave.to(self.device)
        codes, frames = model.encode_batch(wave, batch.lengths.to(self.device), model.num_codebooks)
        mel = L.MelLoss(L.dac_scales(model.sample_rate)[3:6], [1 / 3] * 3).to(self.device)
        measured, output = {}, wave
        for k in sorted({1, 2, 4, 8, model.num_codebooks} & set(range(1, model.num_codebooks + 1))):
            output = model.decode_batch(codes[:, :k], frames, 0)[:, : wave.shape[1]].float()
            measured[f"valid/mel_{k}"] = float(mel(output, wave))
        for k in range(model.num_codebooks):
            measured[f"valid/use_{k + 1}"] = len(codes[:, k].unique()) / model.codebook_sizes[k]
        if board is not None:
            for i in range(min(2, count)):
                board.audio(self.step, f"original_{i}", wave[i])
                board.audio(self.step, f"resynthesis_{i}", output[i])
            board.scalars(self.step, measured)
        return measured

    def final_model(self) -> Codec:
        """The inference codec of the averaged (or present) weights."""
        state = self.average.values if self.average is not None else self.model.state_dict()
        model = type(self.model)(self.model.config)
        checkpoint.load_strict(
            model, type(model).fold({k: v.detach().cpu() for k, v in state.items()}), "training"
        )
        model.name = self.config.name or model.system
        return model.to(self.device).eval()

    def save(self) -> None:
        """A checkpoint to resume from, and the codec itself in out/codec."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.out / "checkpoints", self.step, self._state(), self.config.keep)
            self.final_model().save_pretrained(self.out / "codec")
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        state = {
            "step": self.step,
            "config": to_dict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        for name, part in self._optional_parts():
            state[name] = part.state_dict()
        return state

    def _optional_parts(self) -> Iterator[tuple[str, Any]]:
        if self.average is not None:
            yield "average", self.average
        if self.balancer is not None:
            yield "balancer", self.balancer
        if self.discriminators is not None:
            yield "discriminators", self.discriminators
            yield "judge_optimizer", self.judge_optimizer
        if self.accelerator.scaler is not None:
            yield "scaler", self.accelerator.scaler

    def _resume(self) -> None:
        """Go on from the newest checkpoint of out, if there is one."""
        found = checkpoints(self.out / "checkpoints")
        if not found:
            return
        state = load_checkpoint(found[-1])
        if state["config"]["system"] != self.config.system or state["config"]["model"] != self.config.model:
            raise CheckpointError(
                f"{found[-1]} is of another network: resume with its recipe, or choose another out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self._optional_parts():
            if name not in state:
                raise CheckpointError(
                    f"{found[-1]} has no {name}: it is of a run without; choose another out"
                )
            part.load_state_dict(state[name])
        self.step = state["step"]


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping after this step (again to stop at once)", file=sys.stderr)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
