"""Training tokens -> DAC-VAE latents: Learnable-Speech's second stage, by the trainer of S3Gen's flow.

What differs is what frames are, normalised latents of an autoencoder whose rate sets the latents per token, and that
speaker vectors may come from the language model's speaker encoder, a frozen copy of which is written with the flow.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch

from vokens import checkpoint
from vokens.errors import ConfigError
from vokens.models import load
from vokens.models.codec import build_config
from vokens.models.dacvae import DACVAE
from vokens.models.learnable import LearnableLM, SpeakerEncoder
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.flow_checkpoint import read_start
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.learnable.speaker import REFERENCE_RATE, REFERENCE_SECONDS, ReferenceMel
from vokens.models.s3gen.campplus import EMBEDDING
from vokens.models.s3gen.checkpoint import flow_to_published
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.dialects import flow_sizes
from vokens.models.s3gen.flow import TokenToMel
from vokens.train.data import Clip, Rows
from vokens.train.flow import FlowConfig, FlowDataConfig, FlowTrainer
from vokens.train.flow_data import Ragged, frame_rows

STATISTICS_FRAMES = (
    100_000  # from which mean and deviation are measured where the autoencoder does not know them
)


@dataclass(frozen=True)
class LatentDataConfig(FlowDataConfig):
    """Recordings whose tokens, latents and voices are cached.

    Attributes:
        latents: name or folder of the DAC-VAE whose latents are made.
        speaker: folder or file of CAM++'s weights, or folder of a trained `learnable_lm`, for its speaker encoder.
    """

    latents: str = ""


@dataclass(frozen=True)
class LearnableFlowRun(FlowConfig):
    """One run; the defaults are Learnable-Speech's. Latents per token and numbers of a latent follow from data."""

    task: str = "learnable_flow"
    system: str = "learnable_flow"
    out: str = "runs/learnable_flow"
    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    noise_pairing: str = "knn"
    contrastive: float = 0.05
    time: str = "cosine"

    systems: ClassVar[tuple[str, ...]] = ("learnable_flow",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.latents:
            raise ConfigError("data.latents is empty: name the folder of a trained DAC-VAE")


class LearnableFlowTrainer(FlowTrainer):
    """Trains the flow over latents on a corpus, its tokens and its latents."""

    Config = LearnableFlowRun
    frames_are = "latent"

    @property
    def data(self) -> LatentDataConfig:
        return cast(LatentDataConfig, self.config.data)

    # Building ----------------------------------------------------------------------------------------------

    def build_sizes(self) -> S3GenConfig:
        data = self.data
        self.autoencoder = open_autoencoder(data.latents)
        self.tokenizer = load(data.tokenizer)
        self.open_speaker()
        ratio = self.autoencoder.frame_rate / self.tokenizer.frame_rate
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ConfigError(
                f"{data.latents} makes {self.autoencoder.frame_rate:g} latents a second and {data.tokenizer} "
                f"{self.tokenizer.frame_rate:g} tokens: a whole number of latents per token is accepted"
            )
        found = {
            "mel_bins": self.autoencoder.config.latent_dim,
            "token_mel_ratio": round(ratio),
            "vocab_size": self.tokenizer.codebook_sizes[0],
            "speaker_embed_dim": self.voice_width,
            "sampling_rate": self.autoencoder.sample_rate,
        }
        settings = self.config.network_settings()
        wrong = {name: settings[name] for name in found if settings.get(name, found[name]) != found[name]}
        if wrong:
            raise ConfigError(f"model has {wrong}, the data {found}: leave these to the data")
        return build_config(S3GenConfig, {"noise": "fresh", **found, **settings}, "model")

    def open_speaker(self) -> None:
        """CAM++, or the speaker encoder of a language model, whose frozen copy goes with the flow."""
        path = Path(self.data.speaker).expanduser()
        self.encoder: SpeakerEncoder | None = None
        if not (path / "config.json").exists():
            super().open_speaker()
            self.voice_width = EMBEDDING
            return
        model = load(path)
        if not isinstance(model, LearnableLM) or model.speaker_encoder is None:
            raise ConfigError(
                f"data.speaker {path} holds {model.system!r} without a speaker encoder: a trained learnable_lm, or "
                "CAM++'s weights are accepted"
            )
        self.encoder = model.speaker_encoder
        self.voice_width, self.voice_name = (
            self.encoder.config.embed_dim,
            f"{model.name}-{model.fingerprint[:8]}",
        )

    def open_flow(self, source: str) -> TokenToMel:
        path = Path(source).expanduser()
        if path.is_dir() and (path / "config.json").exists():
            flow = load(path)
            return flow.network if isinstance(flow, LearnableFlow) else super().open_flow(source)
        state = read_start(path)
        flow = TokenToMel(latent_flow(**flow_sizes(flow_to_published(state))))
        checkpoint.load_strict(flow, state, source)
        return flow

    # Data --------------------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        return self.autoencoder.frame_rate

    def load_data(self) -> None:
        vae = self.autoencoder
        self.mean, self.std = (np.asarray(x, np.float32) for x in (vae.config.mean, vae.config.std))
        super().load_data()

    def statistics(self, frames: Ragged) -> tuple[np.ndarray, np.ndarray]:
        """The autoencoder's; measured on the first latents of the training data where it does not know them."""
        if not len(self.mean):
            counts = frames.offsets.searchsorted(STATISTICS_FRAMES) + 1
            some = np.concatenate([frames[clip] for clip in range(min(counts, len(frames.offsets) - 1))])
            self.mean, self.std = some.astype(np.float32).mean(0), some.astype(np.float32).std(0)
        return self.mean, np.maximum(self.std, 1e-5)

    def frames(self, cache: Path, clips: list[Clip]) -> Rows:
        vae = self.autoencoder

        def frames(wave: np.ndarray) -> np.ndarray:
            return vae.encode(wave, vae.sample_rate).values[0].T.numpy()

        name = f"latent-{vae.name}-{vae.fingerprint[:8]}"
        return frame_rows(cache, name, clips, frames, vae.sample_rate, self.data.workers)

    def voices(self, cache: Path, clips: list[Clip]) -> Rows:
        encoder = self.encoder
        if encoder is None:
            return super().voices(cache, clips)
        longest, mel = int(REFERENCE_SECONDS[1] * REFERENCE_RATE), ReferenceMel()

        @torch.inference_mode()
        def voice(wave: np.ndarray) -> np.ndarray:
            return encoder(mel(torch.from_numpy(wave[:longest]))[None]).numpy()

        name = f"voice-{self.voice_name}"
        return frame_rows(cache, name, clips, voice, REFERENCE_RATE, self.data.workers)

    # What comes out of it ----------------------------------------------------------------------------------

    def validated_steps(self, flow: TokenToMel) -> tuple[int, ...]:
        return (1, 2, 10)

    def final_model(self) -> LearnableFlow:
        vae = self.autoencoder
        config = LearnableFlowConfig(
            flow=self.model.flow.config,
            speaker=None if self.encoder is None else self.encoder.config,
            mean=tuple(self.mean.tolist()),
            std=tuple(np.maximum(self.std, 1e-5).tolist()),
            sample_rate=vae.sample_rate,
            frame_rate=vae.frame_rate,
            latents=vae.name,
            latents_fingerprint=vae.fingerprint,
            tokens=self.tokenizer.name,
            tokens_fingerprint=self.tokenizer.fingerprint,
        )
        model = LearnableFlow(config)
        model.network.load_state_dict(self.final_flow().state_dict())
        if self.encoder is not None and model.speaker_encoder is not None:
            model.speaker_encoder.load_state_dict(self.encoder.state_dict())
        model.name = self.config.name or model.system
        return model.to(self.device).eval().requires_grad_(False)


def open_autoencoder(source: str) -> DACVAE:
    """A DAC-VAE, of whose latents a flow is trained."""
    model = load(source)
    if not isinstance(model, DACVAE):
        raise ConfigError(f"data.latents {source} holds {model.system!r}: a dacvae is accepted")
    return model
