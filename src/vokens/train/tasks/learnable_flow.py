"""Training tokens -> DAC-VAE latents: Learnable-Speech's second stage, by the trainer of S3Gen's flow.

Frames are normalised latents of an autoencoder, whose rate sets the latents per token. Speaker vectors may come from
the language model's speaker encoder, a frozen copy of which is saved with the flow. Tokens and latents may also be
Learnable-Speech's files.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vokens import checkpoint
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.models.dacvae import DACVAE
from vokens.models.learnable import LearnableLM, SpeakerEncoder
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.flow_checkpoint import read_start
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.learnable.speaker import REFERENCE_RATE, REFERENCE_SECONDS, ReferenceMel
from vokens.models.pretrained import layout_of, load
from vokens.models.s3gen.checkpoint import flow_sizes, flow_to_published
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.nn.campplus import EMBEDDING
from vokens.train.data import Clip
from vokens.train.flow_data import frame_rows
from vokens.train.published_files import TOKEN_RATE, PublishedFiles, is_published, ratio_of
from vokens.train.rows import Rows
from vokens.train.tasks.flow import FlowConfig, FlowDataConfig, FlowTrainer

STATISTICS_FRAMES = 100_000  # for mean and standard deviation where the autoencoder has none


@dataclass(frozen=True)
class LatentDataConfig(FlowDataConfig):
    """Recordings whose tokens, latents and voices are cached, or Learnable-Speech's train_index.json or data.list.

    speaker: also folder or published file of a `learnable_lm`, for its speaker encoder.
    """

    # Name or folder of the DAC-VAE. With published files the DAC-VAE and the tokenizer are optional, and only recorded
    # in the flow's config.
    latents: str = ""
    normalise: bool = True  # latents by their mean and standard deviation; the published code does not


@dataclass(frozen=True)
class LearnableFlowRun(FlowConfig):
    """One run; the defaults are Learnable-Speech's. Latents per token and latent dim come from the data."""

    task: str = "learnable_flow"
    system: str = "learnable_flow"
    out: str = "runs/learnable_flow"
    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    noise_pairing: str = "knn"
    contrastive: float = 0.05
    time: str = "cosine"

    def check_sources(self) -> None:
        data = self.data
        if is_published(data.train):
            if not data.speaker:
                raise ConfigError("data.speaker is empty: name CAM++'s weights, or a trained learnable_lm")
            if data.valid and not is_published(data.valid):
                raise ConfigError(f"data.valid {data.valid}: an index or list as data.train, {data.train}")
            return
        super().check_sources()
        if not data.latents:
            raise ConfigError("data.latents is empty: name the folder of a trained DAC-VAE")


class LearnableFlowTrainer(FlowTrainer):
    """Trains the flow over latents on a corpus, its tokens and its latents."""

    Config = LearnableFlowRun
    frames_are = "latent"

    @property
    def data(self) -> LatentDataConfig:
        return cast(LatentDataConfig, self.config.data)

    def build_sizes(self) -> S3GenConfig:
        data = self.data
        # Of the network, and of what the flow's config keeps: by published files, or by the models that are named.
        sizes, self.facts = {"vocab_size": 6561, "sampling_rate": 24000}, dict[str, Any]()
        self.mean = self.std = np.zeros(0, np.float32)
        if is_published(data.train):
            files = PublishedFiles(data.train)
            tokens, latents = files.tokens(data), files.latents(data)
            sizes |= {"mel_bins": latents[0].shape[1], "sampling_rate": files.sample_rate}
            self.token_rate, self.frame_rate = TOKEN_RATE, ratio_of(tokens, latents) * TOKEN_RATE
        if data.latents:
            vae = self.autoencoder = DACVAE.from_pretrained(data.latents)
            sizes |= {"mel_bins": vae.config.latent_dim, "sampling_rate": vae.sample_rate}
            if data.normalise:
                self.mean, self.std = (
                    np.asarray(each, np.float32) for each in (vae.config.mean, vae.config.std)
                )
            self.facts |= {"latents": vae.name, "latents_fingerprint": vae.fingerprint}
            self.frame_rate, self.weights = vae.frame_rate, vae.weights
        if data.tokenizer:
            codec = self.tokenizer = Codec.from_pretrained(data.tokenizer)
            sizes["vocab_size"], self.token_rate = codec.codebook_sizes[0], codec.frame_rate
            self.facts |= {"tokens": codec.name, "tokens_fingerprint": codec.fingerprint}
        self.facts |= {"sample_rate": sizes["sampling_rate"], "frame_rate": self.frame_rate}
        self.open_speaker()
        ratio = self.frame_rate / self.token_rate
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ConfigError(
                f"{data.latents} makes {self.frame_rate:g} latents a second and {data.tokenizer} "
                f"{self.token_rate:g} tokens: a whole number of latents per token is accepted"
            )
        sizes |= {"token_mel_ratio": round(ratio), "speaker_embed_dim": self.voice_width}
        settings = self.config.network_settings()
        wrong = {name: settings[name] for name in sizes if settings.get(name, sizes[name]) != sizes[name]}
        if wrong:
            raise ConfigError(f"model has {wrong}, the data {sizes}: leave these to the data")
        return build_config(S3GenConfig, {"noise": "fresh", **sizes, **settings}, "model")

    def open_speaker(self) -> None:
        """Open CAM++, or the speaker encoder of a language model, whose frozen copy is saved with the flow."""
        path = Path(self.data.speaker).expanduser()
        self.encoder: SpeakerEncoder | None = None
        published = path.is_file() and layout_of(checkpoint.read_state_dict(path)) == "learnable_lm"
        if not (path / "config.json").exists() and not published:
            super().open_speaker()
            self.voice_width = EMBEDDING
            return
        model = load(path)
        if not isinstance(model, LearnableLM) or model.speaker_encoder is None:
            raise ConfigError(
                f"data.speaker {path} holds {model.system!r} without a speaker encoder: a trained learnable_lm, or "
                "CAM++'s weights are accepted"
            )
        self.encoder, self.voice_width = model.speaker_encoder, model.speaker_encoder.config.embed_dim
        self.voice_name = f"{model.name}-{model.fingerprint[:8]}"

    def open_flow(self, source: str) -> TokenToMel:
        path = Path(source).expanduser()
        if (path / "config.json").exists() or (path.is_file() and checkpoint.read_config(path)):
            flow = load(path)
            return flow.network if isinstance(flow, LearnableFlow) else super().open_flow(source)
        state = read_start(path)
        settings = self.config.network_settings()
        flow = TokenToMel(latent_flow(**flow_sizes(flow_to_published(state), settings)))
        checkpoint.load_strict(flow, state, source)
        return flow

    def check_tokenizer(self) -> None:
        if not is_published(self.data.train):
            super().check_tokenizer()

    def rows(self, source: str, split: str | None) -> tuple[Rows, Rows, Rows]:
        if not is_published(source):
            return super().rows(source, split)
        files = PublishedFiles(source)
        return files.tokens(self.data), files.latents(self.data), self.voices(files.clips)

    def statistics(self, frames: Rows) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mean and standard deviation of latents: the autoencoder's, else measured on the first training latents."""
        if not self.data.normalise:
            return None, None
        if not len(self.mean):
            counts = frames.offsets.searchsorted(STATISTICS_FRAMES) + 1
            some = np.concatenate([frames[clip] for clip in range(min(counts, len(frames.offsets) - 1))])
            self.mean, self.std = some.astype(np.float32).mean(0), some.astype(np.float32).std(0)
        return self.mean, np.maximum(self.std, 1e-5)

    def frames(self, clips: list[Clip]) -> Rows:
        vae = self.autoencoder

        def frames(wave: np.ndarray) -> np.ndarray:
            return vae.encode(wave, vae.sample_rate).values[0].T.half().numpy()

        name = f"latent-{vae.name}-{vae.fingerprint[:8]}"
        return frame_rows(self.data, name, clips, frames, vae.sample_rate)

    def voices(self, clips: list[Clip]) -> Rows:
        encoder = self.encoder
        if encoder is None:
            return super().voices(clips)
        longest, mel = int(REFERENCE_SECONDS[1] * REFERENCE_RATE), ReferenceMel()

        @torch.inference_mode()
        def voice(wave: np.ndarray) -> np.ndarray:
            return encoder(mel(torch.from_numpy(wave[:longest]))[None]).half().numpy()

        return frame_rows(self.data, f"voice-{self.voice_name}", clips, voice, REFERENCE_RATE)

    def validated_steps(self, flow: TokenToMel) -> tuple[int, ...]:
        return (1, 2, 10)

    def final_model(self) -> LearnableFlow:
        mean, std = tuple(self.mean.tolist()), tuple(np.maximum(self.std, 1e-5).tolist())
        speaker = None if self.encoder is None else self.encoder.config
        config = LearnableFlowConfig(self.model.flow.config, speaker, mean, std, **self.facts)
        state = {f"network.{name}": value for name, value in self.final_flow().state_dict().items()}
        if self.encoder is not None:
            state |= {f"speaker_encoder.{name}": x for name, x in self.encoder.state_dict().items()}
        return self.finished(LearnableFlow(config), state)
