"""Training loop of every task: steps, resume, checkpoints, EMA, logs, validation, stopping.

A task is a subclass in a file of its own in `tasks/`, named in `config.TASKS`. Everything random in it is a function of
(seed, step), so that a resumed run equals an uninterrupted one, and n processes equal one.
"""

import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.errors import CheckpointError, MissingExtra, needs_extra
from vokens.models.pretrained import Pretrained
from vokens.train.config import RunConfig
from vokens.train.log import Board, Log
from vokens.train.state import Average, Best, checkpoints, load_checkpoint, save_checkpoint

Config = TypeVar("Config", bound=RunConfig)
Model = TypeVar("Model", bound=nn.Module)
Exported = TypeVar("Exported", bound=Pretrained)


class Trainer(Generic[Config, Model]):
    """A training run: build it from its config, then `run()`.

    A task implements build_model, open_data (or load_data), micro_step and, where it has any, discriminators, validate,
    begin_step, parts and final_model.

    Raises ConfigError for settings that do not fit together, before any heavy work.

    Attributes:
        model: the network in training; module: the same, wrapped for several devices, to be called in micro_step.
        step: steps done. world, rank: number of processes, and which of them this is.
        sample_rate: of the sounds on the TensorBoard, Hz.
    """

    Config: ClassVar[type[RunConfig]]  # built from a recipe of this task
    exported: ClassVar[str] = "codec"  # folder below out of what `export` writes
    inside: ClassVar[str] = ""  # the submodule that is the model; "" where the network in training is
    # Settings that a checkpoint to resume must share.
    network: ClassVar[tuple[str, ...]] = ("system", "model")
    sample_rate: int = 16000
    unused_parameters: ClassVar[bool] = False  # whether some weights have no part in some steps
    train: Any  # batch(number, rank, world) makes a batch
    valid: Any = None  # held-out data, where there is any

    def __init__(self, config: Config) -> None:
        with needs_extra("accelerate", "train", "training"):
            from accelerate import Accelerator, DistributedDataParallelKwargs
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.out = config, Path(config.out)
        # Buffers (codebooks, spectral norms) are equal on all processes by construction.
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=False, find_unused_parameters=self.unused_parameters
        )
        if config.tracker and find_spec(config.tracker) is None:  # accelerate would silently log nothing
            raise MissingExtra(config.tracker, "track", f"tracker = {config.tracker!r}")
        # Without it accelerate takes torchrun's processes for strangers on a machine that has no GPU.
        together = "WORLD_SIZE" in os.environ and not torch.accelerator.is_available()
        self.accelerator: Any = Accelerator(
            cpu=together,
            mixed_precision=config.precision,
            kwargs_handlers=[ddp],
            log_with=config.tracker or None,
        )
        self.device: torch.device = self.accelerator.device
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        torch.manual_seed(config.seed)
        self.model: Model = self.build_model()
        with self.accelerator.main_process_first():  # it writes the caches, the other processes read them
            self.load_data()
        self.prepare()
        self.step = 0

    # What a task implements --------------------------------------------------------------------------------

    def build_model(self) -> Model:
        """Build the network to train, on the CPU, and teachers and losses; check the settings."""
        raise NotImplementedError

    def load_data(self) -> None:
        """Open the data, and make caches that are missing."""
        data = self.config.data
        self.train = self.open_data(data.train, data.train_split, True)
        self.valid = self.open_data(data.valid, data.valid_split, False) if data.valid else None

    def open_data(self, source: str, split: str | None, training: bool) -> Any:
        """Open a source of training or of held-out data; `load_data` calls it."""
        raise NotImplementedError

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend and the named values to report, of micro-batch `part` of this step.

        A pure function of the weights and `self.number(part)`. Call `self.module`, under `accelerator.autocast()`.
        """
        raise NotImplementedError

    def final_model(self) -> Any:
        """The model that users load, of the EMA weights where there are any; has `save_pretrained(folder)`."""
        model: Any = self.model.get_submodule(self.inside)
        return self.finished(type(model)(model.config), self.final_state(f"{self.inside}."))

    def discriminators(self) -> Iterable[Any]:
        """The discriminators of the run, as `vokens.train.gan.GAN`s; none unless a task has some."""
        return ()

    def begin_step(self) -> None:
        """Hook before each step, for what happens at certain steps, such as fitting codebooks."""

    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Metrics on held-out data by name; the board takes sounds and pictures. Called where `valid` is set."""
        return {}

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Objects with a state dict, by name, that a checkpoint holds beside model and optimizer."""
        if self.average is not None:
            yield "average", self.average
        if self.accelerator.scaler is not None:
            yield "scaler", self.accelerator.scaler
        for gan in self.gans:
            yield from gan.parts()

    def export(self) -> None:
        """Write what users load to out/`exported`."""
        self.final_model().save_pretrained(self.out / self.exported)

    def prepare(self) -> None:
        """Create optimizer and EMA, and wrap model and optimizer with accelerate."""
        optim, trained = self.config.optim, [p for p in self.model.parameters() if p.requires_grad]
        vectors = [p for p in trained if p.dim() <= 1]  # norms, biases, scales: they do not decay
        matrices = {"params": [p for p in trained if p.dim() > 1], "weight_decay": optim.weight_decay}
        optimizer = torch.optim.AdamW(
            [matrices, {"params": vectors, "weight_decay": 0.0}],
            lr=optim.learning_rate,
            betas=optim.betas,
            fused=True,  # 4.6 M weights on one core: 7 ms instead of 22
        )
        self.average = Average(self.model.to(self.device), self.config.ema) if self.config.ema else None
        self.module, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.gans = list(self.discriminators())

    # What a task calls -------------------------------------------------------------------------------------

    def number(self, part: int) -> int:
        """The number of micro-batch `part` of this step, counted from the start of the run."""
        return self.step * self.config.accumulate + part

    def batch(self, number: int) -> Any:
        """This process's rows of a micro-batch."""
        return self.train.batch(number, self.rank, self.world)

    def generator(self, number: int) -> torch.Generator:
        """Random generator of a micro-batch, the same on every process."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)

    def row_draws(self, number: int, rows: int) -> list[np.random.Generator]:
        """Random generators of this process's rows of a micro-batch, independent of the number of processes."""
        first = self.rank * rows
        return [np.random.default_rng((self.config.seed, number, first + row)) for row in range(rows)]

    def row_generators(self, number: int, rows: int) -> list[torch.Generator]:
        """`row_draws` as generators of torch."""
        seeds = [int(draw.integers(2**63)) for draw in self.row_draws(number, rows)]
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def own(self, drawn: Tensor) -> Tensor:
        """This process's rows of a tensor drawn for all processes."""
        return drawn.chunk(self.world)[self.rank]

    def synced(self, module: nn.Module, part: int) -> contextlib.AbstractContextManager[None]:
        """Context that exchanges gradients between processes in the last micro-batch only."""
        last = part == self.config.accumulate - 1
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    @torch.no_grad()
    def fit_quantizer(
        self,
        fit: Callable[[Tensor, torch.Generator], None],
        latents: Callable[[Any], Tensor],
        enough: int,
        most: float = math.inf,
    ) -> None:
        """Initialise a quantizer from `enough` latents of the next batches, the same on every process.

        fit: takes latents (N, D) and a generator. latents: (n, D) of a batch. most: numbers of batches, at the most.
        """
        self.model.eval()
        first, rows = self.number(0), []
        while sum(map(len, rows)) < enough and len(rows) < most * self.world:
            number = first + len(rows) // self.world
            rows += [latents(self.train.batch(number, rank, self.world)) for rank in range(self.world)]
        fit(torch.cat(rows), torch.Generator().manual_seed(self.config.seed))
        self.model.train()
        if self.average is not None:
            self.average.restart(self.model)

    def set_rate(self, optimizer: Any, learning_rate: float) -> None:
        """Set the learning rate of this step by the schedule."""
        factor = self.config.optim.factor(self.step, self.config.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor

    def final_state(self, prefix: str = "") -> dict[str, Tensor]:
        """The EMA (or present) weights on the CPU, their names without the prefix of a part."""
        state = self.average.values if self.average is not None else self.model.state_dict()
        return {name.removeprefix(prefix): value.detach().cpu() for name, value in state.items()}

    def started(self, model: Exported) -> Exported:
        """A fresh model, with the weights of the config's init where there is one."""
        kind: Any = type(model)
        if source := self.config.init:
            checkpoint.load_strict(model, kind.from_pretrained(source).state_dict(), source)
        return model

    def finished(self, model: Exported, state: dict[str, Tensor]) -> Exported:
        """A fresh model with these weights in evaluation mode, under the run's name."""
        checkpoint.load_strict(model, model.remove_weight_norm(state), "training")
        model.name = self.config.name or model.system
        return model.to(self.device).eval().requires_grad_(False)

    # The run -----------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """One optimizer step; the values that micro_step reports."""
        config = self.config
        self.set_rate(self.optimizer, config.optim.learning_rate)
        self.module.train()
        self.begin_step()
        torch.manual_seed(config.seed + self.step)
        report: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for part in range(config.accumulate):
            with self.synced(self.module, part):
                total, values = self.micro_step(part)
                self.accelerator.backward(total / config.accumulate)
            report |= values
        if config.optim.clip:
            report["gradient"] = self.accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        return {name: float(value.detach()) for name, value in report.items()}

    def run(self, resume: bool = True) -> Path:
        """Train to config.steps, and return the folder of the run; its `exported` folder holds the model.

        Ctrl-C and SIGTERM finish the step, save, and return; run again with resume to go on.
        """
        main = self.accelerator.is_main_process
        best = Best(self.out / "best", self.config.best, self.config.keep_best)
        if resume:
            self._resume()
        elif main:
            for old in checkpoints(self.out / "checkpoints"):
                old.unlink()
            best.clear()
        name = self.config.name or self.out.name
        options = {"wandb": {"name": name, "dir": str(self.out)}}
        self.accelerator.init_trackers("vokens", asdict(self.config), options)
        log = (
            Log(self.out, self.sample_rate, self.accelerator, self.step, self.config.steps) if main else None
        )
        with _stop_signals() as stopped:
            while self.step < self.config.steps and not stopped:
                values = self.train_step()
                if log is not None:
                    self._report(log, best, values)
                if self.step % self.config.save_every == 0:
                    self.save()
        self.save()
        for tracker in self.accelerator.trackers:  # end_training would end the process group too
            tracker.finish()
        if log is not None:
            if stopped:
                log.say(f"stopped at step {self.step}: saved; run the same command to go on")
            log.close()
        return self.out

    def _report(self, log: Log, best: Best, values: dict[str, float]) -> None:
        """Log the values of a step, and validate, when their steps have come."""
        log.bar.update()
        if self.step % self.config.log_every == 0:
            values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            log.values(self.step, values, "train/")
            log.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        if self.step % self.config.validate_every == 0:
            measured = {} if self.valid is None else self.validate(log.board)
            log.values(self.step, measured)
            if self.config.best:
                best.offer(self.step, measured, self.final_model().save_pretrained)
            log.say(f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items()))

    def save(self) -> None:
        """Write a checkpoint to resume from, and export the model."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.out / "checkpoints", self.step, self._state(), self.config.keep)
            self.export()
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: part.state_dict() for name, part in self.parts()},
        }

    def _resume(self) -> None:
        """Resume from the newest checkpoint of out, if there is one."""
        saved = checkpoints(self.out / "checkpoints")
        if not saved:
            return
        state, settings = load_checkpoint(saved[-1]), asdict(self.config)
        differing = [name for name in self.network if state["config"].get(name) != settings[name]]
        if differing:
            raise CheckpointError(
                f"{saved[-1]} is of another network ({', '.join(differing)} differs): resume with its recipe, "
                "or choose another out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.parts():
            if name not in state:
                raise CheckpointError(
                    f"{saved[-1]} has no {name}: its run trained without; choose another out"
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
