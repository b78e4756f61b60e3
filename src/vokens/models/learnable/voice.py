"""Learnable-Speech as one model: text and a voice to speech (MiniMax-Speech, arXiv 2505.07916).

The language model generates tokens, the flow latents, DAC-VAE the wave. A stream pipelines all three: latents follow
every chunk of tokens, sound follows after the decoder's look-ahead.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vokens import audio
from vokens.checkpoint import later, read_state_dict, save_safetensors
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError
from vokens.lm.sampling import COSYVOICE
from vokens.models.codec import Audio, Codec
from vokens.models.dacvae import DACVAE
from vokens.models.learnable.cascade import DEFAULT_VOICE, Cascade
from vokens.models.learnable.decoder import FlowDecoder, SpeakerPrompt
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.lm import LearnableLM
from vokens.models.pretrained import Pretrained
from vokens.models.speaking import SynthesisOptions
from vokens.nn.campplus import CAMPPlus
from vokens.nn.campplus_onnx import open_campplus
from vokens.text.files import read_json

PARTS = ("lm", "flow", "autoencoder", "tokenizer", "speaker")  # of a folder; the last two may be missing
VOICES = "voices"  # the folder of a model's own voices, NAME.safetensors each
_TENSORS = ("speaker", "vector", "tokens", "latents")  # of a voice's file; first and last may be missing


@dataclass(frozen=True)
class LearnableConfig:
    """Settings that the parts' own configs leave open."""

    # Whether there is one; without, voices have no text (no one-shot). A name of `vokens models` is opened from
    # there and not saved in the folder.
    tokenizer: bool | str = True
    speaker: bool = False  # whether the folder has CAM++, for a flow without a speaker encoder of its own
    # Seconds of a recording that prompt the flow where its text is not known; 0 for none.
    flow_prompt: float = later(0.0)


class LearnableSpeech(Pretrained, Cascade):
    """Text to speech in a voice. `vokens.load(folder)`, `LearnableSpeech.from_parts(...)`, then `say`.

    Args:
        lm: text to tokens. flow: tokens to latents. autoencoder: latents to sound.
        tokenizer: of a prompt's speech.
        speaker: CAM++, where the flow was trained with its vectors.
        flow_prompt: see `LearnableConfig`.

    Attributes:
        decoder: all but the language model. voices: the model's own, by name; "default" is used where none is given.

    Raises ConfigError for parts that do not fit each other.
    """

    system = "learnable"
    Config = LearnableConfig
    voice_type = SpeakerPrompt

    def __init__(
        self,
        lm: LearnableLM,
        flow: LearnableFlow,
        autoencoder: DACVAE,
        tokenizer: Codec | None = None,
        speaker: CAMPPlus | None = None,
        flow_prompt: float = 0.0,
    ) -> None:
        super().__init__(LearnableConfig(tokenizer is not None, speaker is not None, flow_prompt))
        if lm.config.speech_tokens != flow.config.flow.vocab_size:
            raise ConfigError(
                f"tokens of the language model and of the flow differ: {lm.config.speech_tokens} and "
                f"{flow.config.flow.vocab_size}; give parts that were trained on each other"
            )
        self.decoder = FlowDecoder(flow, autoencoder, tokenizer, speaker, flow_prompt, self.name)
        self.lm, self.flow, self.autoencoder, self.tokenizer = lm, flow, autoencoder, tokenizer
        self.speaker = speaker
        self.sample_rate, self.sampler = autoencoder.sample_rate, COSYVOICE
        self.front_end, self.paced = lm.config.front_end, lm.beside

    @classmethod
    def from_parts(
        cls,
        *,
        lm: str | Path | LearnableLM,
        flow: str | Path | LearnableFlow,
        autoencoder: str | Path | DACVAE,
        tokenizer: str | Path | Codec | None = None,
        speaker: str | Path | CAMPPlus | None = None,
        flow_prompt: float = 0.0,
    ) -> Self:
        """Combine separately trained parts: folders, published files, names or models."""
        tokens = None if tokenizer is None else Codec.from_pretrained(tokenizer)
        networks = LearnableLM.from_pretrained(lm), LearnableFlow.from_pretrained(flow)
        campplus = open_campplus(speaker) if isinstance(speaker, (str, Path)) else speaker
        return cls(*networks, DACVAE.from_pretrained(autoencoder), tokens, campplus, flow_prompt).freeze()

    def keep_voice(self, name: str, voice: SpeakerPrompt) -> None:
        """Add a voice to the model's own, which are saved with it; "default" is used where none is given."""
        self.voices = {**self.voices, name: self._fitting(voice, f"the voice {name!r}")}
        self.needs_voice = DEFAULT_VOICE not in self.voices

    @torch.inference_mode()
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> SpeakerPrompt:
        """As `Speaker.voice`; errors as in `FlowDecoder.voice`."""
        wave, rate = audio.load(source, source_rate=sample_rate)
        speaker = None if self.lm.config.speaker is None else self.lm.voice(wave, sample_rate=rate)
        return replace(self.decoder.voice(wave, rate, text), speaker=speaker)

    def _decode(
        self, rows: list[Tensor], voice: Any, generators: list[torch.Generator], options: SynthesisOptions
    ) -> list[np.ndarray]:
        return self.decoder.waves(rows, voice, generators, options.steps, options.guidance)

    def _parts(self) -> dict[str, Pretrained]:
        parts: dict[str, Pretrained] = {"lm": self.lm, "flow": self.flow, "autoencoder": self.autoencoder}
        if self.tokenizer is not None:
            parts["tokenizer"] = self.tokenizer
        return parts

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Compute language model and flow in this floating-point type; encoders and autoencoder stay float32."""
        _ = self.fingerprint
        self.lm.set_dtype(dtype)
        self.flow.set_dtype(dtype)
        return self

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """Write each part into a folder of its own, with config.json, README.md and the voices above them."""
        folder = Path(folder)
        for name, part in self._parts().items():
            part.save_pretrained(folder / name, dtype=dtype if name in ("lm", "flow") else None)
        if self.speaker is not None:
            (folder / "speaker").mkdir(exist_ok=True)
            save_safetensors(folder / "speaker/model.safetensors", self.speaker.state_dict())
        return self.save_frame(folder, card=card)

    def save_frame(self, folder: Path, tokenizer: str = "", card: str = "") -> Path:
        """Write config.json, README.md and the voices, without the parts.

        tokenizer: its name in `vokens models`, where the folder does not contain it.
        """
        settings = replace(self.config, tokenizer=tokenizer) if tokenizer else self.config
        description = {"system": self.system, "name": self.name, "config": asdict(settings)}
        self.write_texts(folder, description, card)
        for name, voice in self.voices.items():
            (folder / VOICES).mkdir(exist_ok=True)
            save_voice(folder / VOICES / f"{name}.safetensors", voice)
        return folder

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The model of a folder that `save_pretrained` wrote; None where it is no such folder."""
        if not (folder / "config.json").is_file():
            return None
        settings = read_json(folder / "config.json")
        if settings.get("system") != cls.system:
            return None
        stored = build_config(LearnableConfig, settings["config"], str(folder / "config.json"))
        parts: dict[str, Any] = {name: folder / name for name in PARTS if getattr(stored, name, True)}
        if isinstance(stored.tokenizer, str):
            parts["tokenizer"] = stored.tokenizer
        missing = [name for name, path in parts.items() if isinstance(path, Path) and not path.is_dir()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}: give a folder of save_pretrained")
        model = cls.from_parts(**parts, flow_prompt=stored.flow_prompt)
        model.name = model.decoder.name = settings.get("name", cls.system)
        for path in sorted((folder / VOICES).glob("*.safetensors")):
            model.keep_voice(path.stem, load_voice(path))
        return model

    def _fitting(self, voice: SpeakerPrompt, what: str) -> SpeakerPrompt:
        """Return the voice if it fits this model. Raises CheckpointError."""
        width, tokens = self.lm.config.backbone.width, voice.tokens
        speaker = None if voice.speaker is None else tuple(voice.speaker.shape)
        fits = speaker == (None if self.lm.config.speaker is None else (1, width))
        fits = fits and tuple(voice.vector.shape) == (1, self.flow.config.flow.speaker_embed_dim)
        fits = fits and (voice.latents is None or len(voice.latents) == self.flow.latent_dim)
        if not fits or (len(tokens) and int(tokens.max()) >= self.lm.config.speech_tokens):
            raise CheckpointError(f"{what} is not of {self.name}: make it again, with voice(recording)")
        return voice


def save_voice(path: Path, voice: SpeakerPrompt) -> None:
    """Write a voice as one safetensors file."""
    tensors = {name: getattr(voice, name) for name in _TENSORS}
    state = {name: value for name, value in tensors.items() if value is not None}
    save_safetensors(path, state, {"text": voice.text})


def load_voice(path: Path) -> SpeakerPrompt:
    """The voice of a file that `save_voice` wrote. Raises CheckpointError."""
    state = read_state_dict(path)
    if not {"vector", "tokens"} <= state.keys() <= set(_TENSORS):
        raise CheckpointError(f"{path} holds no voice but {', '.join(sorted(state)[:4])}: save it again")
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("text", "")
    return SpeakerPrompt(state.get("speaker"), state["vector"], text, state["tokens"], state.get("latents"))
