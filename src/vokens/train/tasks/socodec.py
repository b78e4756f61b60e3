"""Training SoCodec (arXiv 2409.00933 §3): the analyzer, its vocoder, or both side by side.

Nothing of the original's training is published: losses and weights are the paper's, what it leaves open (least
squares, feature matching, their start) is its authors' earlier trainer's. A random number of the first
streams is kept for each item (quantizer dropout), which orders them by importance.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.socodec import SoCodec, SoCodecConfig
from vokens.models.socodec.checkpoint import hubert_to_ours
from vokens.models.socodec.config import MEL_HOP, RATE, SSL_HOP
from vokens.models.socodec.hubert import Hubert, hubert_features
from vokens.models.socodec.learner import (
    AnalyzerBatch,
    MelDiscriminator,
    SoCodecLearner,
    SoCodecOutput,
    voice_clips,
)
from vokens.models.socodec.published import read_hubert
from vokens.nn.discriminators import MultiPeriodDiscriminator, MultiResolutionDiscriminator
from vokens.nn.masks import padding_mask
from vokens.train import losses as L
from vokens.train.config import (
    CropConfig,
    DiscriminatorConfig,
    RunConfig,
    TeacherConfig,
    among,
    without_zeros,
)
from vokens.train.crops import CropTrainer
from vokens.train.data import Batch
from vokens.train.gan import GAN, Discriminators
from vokens.train.log import Board
from vokens.train.rows import Rows
from vokens.train.teacher import standard

ON_ANALYZER = ("mel", "mel_l1", "semantic", "commit", "mel_adversarial", "mel_feature")
ON_VOCODER = ("wave_mel", "wave_stft", "wave_adversarial", "wave_feature")
LOSSES = (*ON_ANALYZER, *ON_VOCODER)
FIT_VECTORS = 50  # for k-means, per codebook entry
FIT_MOST = 65_536  # in all, unless there are more entries: 2 hours at 8.3 Hz
VALID_CLIPS = 32


@dataclass(frozen=True)
class SoCodecRunConfig(RunConfig):
    """One run; losses and weights are the paper's.

    Attributes:
        hubert: with model.features = "hubert": its weights, fairseq's file or a folder of transformers. It is
            frozen, and its features are the semantic loss's target.
        teacher: with model.features = "mel": its features are the semantic loss's target, if there is one.
        losses: weight of each loss by name. Of the analyzer: mel (squared nepers), mel_l1, semantic (squared),
            commit, mel_adversarial, mel_feature. Of the vocoder, which learns from real mels: wave_mel, wave_stft,
            wave_adversarial, wave_feature. A part without losses is not trained.
        stream_dropout: share of items of which a random number of first streams is kept.
        fit_codebooks: until this step latents pass unquantized; then codebooks start from k-means.
        vocoder_seconds: of each crop that the vocoder is trained on.
        init: as always; where its vocoder is another than model.vocoder and the settings with it, that starts anew.
    """

    task: str = "socodec"
    system: str = "socodec"
    out: str = "runs/socodec"
    data: CropConfig = field(default_factory=lambda: CropConfig(seconds=6.0, batch_size=16))
    hubert: str = ""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mel_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    wave_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    losses: dict[str, float] = field(default_factory=lambda: {"commit": 1.0, "semantic": 1000.0, "mel": 10.0})
    stream_dropout: float = 1.0
    fit_codebooks: int = 0
    vocoder_seconds: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        among("losses", self.losses, LOSSES)
        object.__setattr__(self, "losses", without_zeros(self.losses))
        if set(self.losses) & set(ON_ANALYZER) and not {"mel", "mel_l1"} & set(self.losses):
            raise ConfigError("losses.mel or losses.mel_l1 is needed: nothing else teaches the mel decoder")
        if set(self.losses) & set(ON_VOCODER) and not {"wave_mel", "wave_stft"} & set(self.losses):
            raise ConfigError(
                "losses.wave_mel or losses.wave_stft is needed: nothing else starts the vocoder"
            )
        if not self.losses:
            raise ConfigError("at least one loss is needed")


class SoCodecTrainer(CropTrainer[SoCodecRunConfig, SoCodecLearner]):
    """Trains a SoCodec of any size."""

    Config = SoCodecRunConfig
    sample_rate, hop = RATE, SSL_HOP

    def build_model(self) -> SoCodecLearner:
        config = self.config
        sizes = build_config(SoCodecConfig, config.model, "model")
        self.hubert = self._load_hubert(sizes)
        self.open_teacher(sizes.hubert_width, "model.hubert_width")
        if ("semantic" in config.losses) != (self.hubert is not None or self.teacher is not None):
            raise ConfigError(
                "give losses.semantic exactly when there are HuBERT or a teacher: --set losses.semantic=0 trains "
                'without, with model.features = "mel"'
            )
        codec = SoCodec(dataclasses.replace(sizes, hubert=False))
        if config.init:
            self._load_init(codec)
        self.spectrum = codec.mel.to(self.device)
        self.distances = {"wave_mel": partial(L.spectral_l1, self.spectrum), "wave_stft": L.stft_loss}
        named = set(config.losses)
        learner = SoCodecLearner(
            codec,
            analyzer=bool(named & set(ON_ANALYZER)),
            semantic="semantic" in named,
            vocoder=bool(named & set(ON_VOCODER)),
        )
        self.sizes, self.unit = sizes, sizes.hop_length
        return learner

    def _load_init(self, codec: SoCodec) -> None:
        """Load the weights of init; a vocoder of another kind or size starts anew."""
        source, losses = self.config.init, self.config.losses
        start = SoCodec.from_pretrained(source).state_dict()
        start = {name: value for name, value in start.items() if not name.startswith("hubert.")}
        fresh = {name: value for name, value in codec.state_dict().items() if name.startswith("vocoder.")}
        start_shapes = {name: value.shape for name, value in start.items() if name.startswith("vocoder.")}
        if start_shapes != {name: value.shape for name, value in fresh.items()}:
            if not set(losses) & set(ON_VOCODER):
                raise ConfigError(
                    f"{source} has another vocoder than model.vocoder and the settings with it ask for: "
                    "give losses that train one (wave_mel, …), or leave these settings as they are there"
                )
            start = {name: value for name, value in start.items() if name not in start_shapes} | fresh
        checkpoint.load_strict(codec, start, source)

    def _load_hubert(self, sizes: SoCodecConfig) -> Hubert | None:
        config = self.config
        if sizes.features == "mel":
            if config.hubert:
                raise ConfigError(
                    'hubert is for model.features = "hubert"; a codec of mels may have a teacher'
                )
            return None
        if not config.hubert or config.teacher.kind:
            raise ConfigError(
                'model.features = "hubert" needs hubert = "…", a folder or file of its weights, and no teacher: '
                'HuBERT itself is the teacher. Without HuBERT, train with model.features = "mel"'
            )
        hubert = Hubert(sizes)
        state = hubert_to_ours(read_hubert(Path(config.hubert).expanduser()))
        checkpoint.load_strict(
            hubert, {name.removeprefix("hubert."): value for name, value in state.items()}, config.hubert
        )
        return hubert.eval().requires_grad_(False).to(self.device)

    def load_data(self) -> None:
        super().load_data()
        if self.model.analyzer and not self.config.init:
            self._start()

    def features(self, pcm: Rows, training: bool) -> Rows | None:
        features = super().features(pcm, training)
        if features is not None:
            self.mean, self.scale = standard(features)
        return features

    @torch.no_grad()
    def _start(self) -> None:
        """Initialise layers to keep their input's scale, and the mel decoder at the mean mel of speech, not at 0."""
        batch, model = self.train.batch(0), self.model.to(self.device)
        wave = batch.wave.to(self.device)
        mel = self.spectrum(wave)
        model.start_from(self._inputs(batch, wave, mel)[0])
        model.codec.mel_decoder.last.get_parameter("bias").add_(mel.mean((0, 2)))

    def discriminators(self) -> Iterator[GAN]:
        config, named = self.config, set(self.config.losses)
        if named & {"mel_adversarial", "mel_feature"}:
            settings = config.mel_discriminator
            yield GAN(self, MelDiscriminator(settings.channels), settings, name="mel")
        if named & {"wave_adversarial", "wave_feature"}:
            settings = config.wave_discriminator
            kinds: dict[str, nn.Module] = {"mpd": MultiPeriodDiscriminator(settings.divisor)}
            if settings.channels:
                kinds["mrd"] = MultiResolutionDiscriminator(settings.channels)
            yield GAN(self, Discriminators(kinds), settings, name="wave")

    def begin_step(self) -> None:
        if self.step == self.config.fit_codebooks and self.model.analyzer and not self._fitted():
            size = self.sizes.codebook_size
            enough = max(size, min(FIT_VECTORS * size, FIT_MOST))
            self.fit_quantizer(self.model.codec.codebooks.fit, self._latents, enough)

    def _latents(self, batch: Batch) -> Tensor:
        inputs, _ = self._inputs(batch, batch.wave.to(self.device), batch.wave)
        return self.model.latent(inputs).flatten(0, 1).float()

    def _fitted(self) -> bool:
        """Whether the codebooks are initialised, as those of `init` are."""
        return all(bool(book.inited) for book in self.model.codec.codebooks.codebooks)

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        batch, generator = self.batch(number), self.generator(number)
        wave, frames = batch.wave.to(self.device), -(-batch.lengths // MEL_HOP)
        mel = self.spectrum(wave)
        quantize = self.step >= self.config.fit_codebooks
        share = self.config.stream_dropout if quantize else 0.0  # k-means fits latents that are all in use
        keep = self.kept_codebooks(len(wave), self.sizes.num_streams, share, generator)
        generators = self.row_generators(number, len(wave))
        inputs, features = self._inputs(batch, wave, voice_clips(mel, frames, generators))
        spans = self._spans(frames, generators)
        with self.accelerator.autocast():
            output = self.module(
                inputs,
                mels=None if spans is None else cut(mel, spans, 1),
                keep=keep,
                generator=generator,
                quantize=quantize,
            )
        mask = padding_mask(frames, mel.shape[2]).unsqueeze(1).to(self.device)
        values, report = self._of_analyzer(output, mel, features, mask, part)
        if output.wave is not None and spans is not None:
            prediction, target = output.wave.float(), cut(wave, spans, MEL_HOP)
            losses, more = self.gan_step(target[:, None], prediction[:, None], part, "wave")
            values, report = values | self.reconstruction(prediction, target) | losses, report | more
        return self.weighted(values), report | values

    def _inputs(self, batch: Batch, wave: Tensor, clips: Tensor) -> tuple[AnalyzerBatch, Tensor | None]:
        """Input of the analyzer, and target features (B, hubert_width, F) of the semantic loss."""
        if self.hubert is not None:
            with torch.no_grad():
                features = hubert_features(self.hubert, wave)
            return AnalyzerBatch(wave, features, clips), features
        target = None
        if batch.teacher is not None:
            target = ((batch.teacher - self.mean) / self.scale).transpose(1, 2).to(self.device)
        return AnalyzerBatch(wave, None, clips), target

    def _spans(self, frames: Tensor, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Span of mel frames (B, 2) of each crop that the vocoder is trained on."""
        if not set(self.config.losses) & set(ON_VOCODER):
            return None
        size = min(self.train.crop // MEL_HOP, round(self.config.vocoder_seconds * RATE / MEL_HOP))
        chance = torch.cat([torch.rand(1, generator=own) for own in generators])
        start = (chance * (frames - size + 1).clamp(min=1)).long()
        return torch.stack([start, start + size], 1)

    def _of_analyzer(
        self, output: SoCodecOutput, mel: Tensor, features: Tensor | None, mask: Tensor, part: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of the analyzer, and further values to report."""
        if output.mel is None or output.commit is None:
            return {}, {}
        prediction, weights = output.mel.float(), self.config.losses
        values = {"mel": L.masked_mean((prediction - mel).square(), mask)}
        values["mel_l1"] = L.masked_mean((prediction - mel).abs(), mask)
        values["commit"] = output.commit
        if output.features is not None and features is not None:
            difference = (output.features.float() - features).square()
            values["semantic"] = L.masked_mean(difference, mask[..., ::2])
        losses, report = self.gan_step(mel, prediction, part, "mel")
        return {name: value for name, value in (values | losses).items() if name in weights}, report

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out distances in nepers per mel: of the mel decoded from 1, 2, … streams, and of the vocoder's waves
        from real mels; and the share of entries that are used, of the EMA weights."""
        if self.model.analyzer and not self._fitted():
            return {}
        codec, measured, batch = self.final_model(), {}, self.valid.spread(VALID_CLIPS)
        wave = batch.wave.to(self.device)
        mel, frames = self.spectrum(wave), -(-batch.lengths // MEL_HOP)
        mask = padding_mask(frames, mel.shape[2]).unsqueeze(1).to(self.device)
        prediction = mel
        if self.model.analyzer:
            codes = torch.stack(codec.tokenize(list(wave)))
            voice = torch.cat(
                [codec.voice(row[:size]) for row, size in zip(wave, batch.lengths, strict=True)]
            )
            for k in range(1, codec.num_codebooks + 1):
                prediction = codec.decode_mel(codes[:, :k], voice)
                measured[f"valid/mel_{k}"] = float(L.masked_mean((prediction - mel).abs(), mask))
            for k in range(codec.num_codebooks):
                measured[f"valid/use_{k + 1}"] = len(codes[:, k].unique()) / min(
                    codec.codebook_sizes[k], codes[:, k].numel()
                )
        if set(self.config.losses) & set(ON_VOCODER):
            copied = torch.stack([codec.vocode(row) for row in mel[:8]])
            measured["valid/wave_mel"] = float(self.distances["wave_mel"](copied, wave[:8]))
        if board is not None:
            board.resyntheses(self.step, wave, torch.stack([codec.vocode(row) for row in prediction[:2]]))
        return measured

    def final_model(self) -> SoCodec:
        """The codec of the averaged (or present) weights, with its HuBERT."""
        state = self.final_state("codec.")
        if self.hubert is not None:
            state |= {f"hubert.{name}": value.cpu() for name, value in self.hubert.state_dict().items()}
        return self.finished(SoCodec(self.sizes), state)


def cut(x: Tensor, spans: Tensor, hop: int) -> Tensor:
    """Columns start * hop .. end * hop of each row of x (B, …, T), for spans (B, 2) of one length."""
    rows = [row[..., first * hop : last * hop] for row, (first, last) in zip(x, spans.tolist(), strict=True)]
    return torch.stack(rows)
