"""Config of a training run: a frozen dataclass tree, built from a TOML recipe of what differs from the defaults."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.text.files import read_text

# Task -> the class of its trainer, in the file of its name below `vokens.train.tasks`. A new task joins here.
TASKS = {
    "codec": "CodecTrainer",
    "recogniser": "RecogniserTrainer",
    "flow": "FlowTrainer",
    "learnable_flow": "LearnableFlowTrainer",
    "vocoder": "VocoderTrainer",
    "socodec": "SoCodecTrainer",
    "token_lm": "TokenLMTrainer",
    "uslm": "USLMTrainer",
    "learnable_lm": "LearnableLMTrainer",
    "dacvae": "VAETrainer",
    "flow_autoencoder": "FlowAutoencoderTrainer",
}


@dataclass(frozen=True)
class DataConfig:
    """Sources of speech. Manifests as in `vokens.train.data.read_clips`.

    Attributes:
        language: keep recordings of this language alone; None keeps all.
        cache: folder of decoded samples, teacher features, tokens; computed once per file and shared by runs.
        workers: threads that compute the caches.
    """

    train: str = ""
    train_split: str | None = None
    valid: str = ""
    valid_split: str | None = None
    language: str | None = None
    cache: str = "cache"
    workers: int = 2


@dataclass(frozen=True)
class CropConfig(DataConfig):
    """Crops of speech."""

    seconds: float = 3.0  # duration of a crop
    batch_size: int = 6  # crops per process and forward pass

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size = {self.batch_size}: at least 1 is accepted")


@dataclass(frozen=True)
class TeacherConfig:
    """Teacher whose features are distilled into the first codebook. kind "" trains without a teacher.

    Attributes:
        kind: "hubert" (any HuBERT-like model of transformers) or "moonshine". source: a folder; a hub id of a
            HuBERT-like model; or the name of an evaluator model of docs/jobs/metrics.md, sought in VOKENS_EVAL_MODELS.
        layer: of a HuBERT-like model: "avg" or a number. loss: "d_axis" (over time) or "t_axis" (over features).
        cached: compute all features once to disk, else for each crop on the fly.
    """

    kind: str = ""
    source: str = ""
    layer: str | int = "avg"
    loss: str = "d_axis"
    cached: bool = True

    def __post_init__(self) -> None:
        among("teacher.kind", self.kind, ("", "moonshine", "hubert"))
        among("teacher.loss", self.loss, ("d_axis", "t_axis"))


@dataclass(frozen=True)
class AdversarialConfig:
    """Discriminators. An empty `kinds` trains without.

    Attributes:
        kinds: of "mpd", "msd", "mstft". divisor: divides the widths of MPD and MSD. filters, windows: of MS-STFT.
        loss: "least_squares" or "hinge". feature: "published" (2 x sum) or "normalised" feature matching.
        start: the first step with discriminators. learning_rate: theirs; 0 means the generator's.
    """

    kinds: tuple[str, ...] = ()
    divisor: int = 1
    filters: int = 32
    windows: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    loss: str = "least_squares"
    feature: str = "published"
    start: int = 0
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        among("adversarial.kinds", self.kinds, ("mpd", "msd", "mstft"))
        among("adversarial.loss", self.loss, ("least_squares", "hinge"))
        among("adversarial.feature", self.feature, ("published", "normalised"))


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Discriminators of periods and of spectrograms, or of mels."""

    divisor: int = 1  # divides the widths of the first
    # Of the others; of SoCodec's waves, 0 is without those of spectrograms, which take four fifths of the
    # discriminators' time on a CPU.
    channels: int = 32
    start: int = 0  # the first step with them
    learning_rate: float = 0.0  # theirs; 0 means the generator's


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        schedule: after `warmup` steps, "cosine" falls to `final` x learning_rate at the last step; "constant" stays;
            "decay" stays and falls linearly over the last `decay_steps`, so that a run can be prolonged.
        clip: largest gradient norm, 0 for none.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "cosine"
    decay_steps: int = 0
    final: float = 0.0
    clip: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Factor of the learning rate at a step of so many."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(1, steps - self.warmup)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.schedule == "decay" and self.decay_steps:
            left = (steps - step) / self.decay_steps
            return self.final + (1 - self.final) * min(1.0, left)
        return 1.0


@dataclass(frozen=True)
class RunConfig:
    """Settings of every run; a task adds its own. Where `any_system` is False, its default of system is the only one.

    Attributes:
        task: a name of TASKS. system: which network; model: its settings that differ from the defaults.
        name: of the trained model. out: folder of the run.
        init: a folder or checkpoint to start the weights from; codecs of residual blocks may be deeper than it.
        ema: decay of the averaged weights that are validated and saved; 0 saves the weights themselves.
        accumulate: forward passes per step. precision: "no", "bf16" or "fp16". threads: of the CPU, 0 for all.
        keep: checkpoints that stay on disk.
        best: a validation metric, "valid/nats" or the like; the exported model is then also kept of the
            `keep_best` steps where it was least ("-valid/accuracy": largest), in out/best.
        tracker: "wandb" or "comet_ml" logs the curves there too, in the project "vokens"; both need an account.
    """

    any_system: ClassVar[bool] = False

    task: str = "codec"
    system: str = ""
    name: str = ""
    out: str = "runs/codec"
    seed: int = 1234
    steps: int = 100_000
    model: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: float = 0.0
    accumulate: int = 1
    precision: str = "no"
    threads: int = 0
    log_every: int = 20
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    best: str = ""
    keep_best: int = 1
    tracker: str = ""

    def __post_init__(self) -> None:
        if not self.any_system:
            among("system", self.system, (type(self).system,))
        among("precision", self.precision, ("no", "bf16", "fp16"))
        among("tracker", self.tracker, ("", "wandb", "comet_ml"))
        among("optim.schedule", self.optim.schedule, ("cosine", "constant", "decay"))
        if not self.data.train:
            raise ConfigError("data.train is empty: name a manifest or a folder of audio")
        counts = ("steps", "accumulate", "log_every", "validate_every", "save_every", "keep", "keep_best")
        if min(getattr(self, name) for name in counts) < 1:
            raise ConfigError(f"{', '.join(counts)} must be at least 1")


# Deprecated names of settings, read until the next release.
RENAMED = {"judges": "discriminators", "mel_judge": "mel_discriminator", "wave_judge": "wave_discriminator"}


def trainer_of(task: str) -> Any:
    """The trainer class of a task."""
    among("task", task, tuple(TASKS))
    return getattr(import_module(f"vokens.train.tasks.{task}"), TASKS[task])


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name; each lies in the folder of its system."""
    here = Path(__file__)
    folders = (here.parents[1] / "recipes", here.parents[3] / "recipes")  # of a wheel, of a clone
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*/*.toml"))}


def find_recipe(source: str | Path) -> Path:
    """File of a recipe: a path, or a name of `recipes`, also as a path that a clone has, "recipes/mini/mini.toml".

    Raises ConfigError where there is none.
    """
    path, known = Path(source).expanduser(), recipes()
    if path.is_file():
        return path
    file, home = known.get(path.stem), Path("recipes")
    # Recipes lay there without their system's folder, too.
    if file and path.suffix in ("", ".toml") and path.parent in (Path(), home, home / file.parent.name):
        return file
    raise ConfigError(f"there is no recipe {source}: give a TOML file, or one of {', '.join(known)}")


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Any:
    """Config of a run from a TOML file, or from a recipe of the package by its name.

    changes: "optim.learning_rate=3e-4" and the like, TOML values or bare words.

    Raises ConfigError naming the setting that is unknown or of the wrong type.
    """
    try:
        values = tomllib.loads(read_text(find_recipe(path)))
        values = {RENAMED.get(name, name): value for name, value in values.items()}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the recipe {path} is not valid TOML: {error}") from error
    for change in changes:
        _apply(values, change)
    return build_config(trainer_of(values.get("task", "codec")).Config, values, str(path))


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"--set {change!r}: write name=value, e.g. optim.learning_rate=3e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word
    first, *rest = key.strip().split(".")
    *tables, name = RENAMED.get(first, first), *rest
    for table in tables:
        values = values.setdefault(table, {})
    values[name] = value


def without_zeros(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses with a weight other than 0."""
    return {name: weight for name, weight in losses.items() if weight}


def refuse(model: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ConfigError for model settings that are derived from the tokens."""
    if present := [name for name in names if name in model]:
        raise ConfigError(f"model.{present[0]} comes from the tokens: leave it out")


def among(name: str, values: str | Iterable[str], accepted: Sequence[str]) -> None:
    """Raise ConfigError for a setting's value, or one of its values, that is not accepted."""
    choices = ", ".join(each or '""' for each in accepted)
    for value in [values] if isinstance(values, str) else values:
        if value not in accepted:
            raise ConfigError(f"{name} = {value!r}: {choices} are accepted")
