"""Learnable-Speech as one model: text and a voice to speech (MiniMax-Speech, arXiv 2505.07916).

The language model says tokens, the flow makes latents of them, DAC-VAE the wave. In a stream all three run behind each
other: latents come with every chunk of tokens, sound as soon as the decoder has seen what it reaches.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.atomic import atomic_write
from vokens.checkpoint import save_safetensors
from vokens.errors import AudioError, CheckpointError, ConfigError
from vokens.models.codec import Audio, Codec
from vokens.models.dacvae import DACVAE
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.lm import LearnableLM
from vokens.models.pretrained import Pretrained, build_config
from vokens.models.s3gen.campplus import CAMPPlus, open_campplus
from vokens.models.speaking import Manner, Speaker, generator_of
from vokens.nn.sampling import Sampler
from vokens.text.files import read_json

Part = TypeVar("Part", bound=Pretrained)
PARTS = ("lm", "flow", "autoencoder", "tokenizer", "speaker")  # of a folder; the last two may be missing
CAMPPLUS_RATE = 16000
SPEAKER_SECONDS = 10.0  # of a recording that CAM++ hears, as Chatterbox does
PROMPT_SECONDS = 30.0  # the longest prompt: S3Tokenizer's window


@dataclass(frozen=True)
class LearnableConfig:
    """What the parts' own configs leave open.

    Attributes:
        tokenizer: whether there is one; without, voices have no text (no one-shot).
        speaker: whether CAM++ is there, for a flow without a speaker encoder of its own.
    """

    tokenizer: bool = True
    speaker: bool = False


@dataclass(frozen=True)
class HeardVoice:
    """A voice.

    Attributes:
        speaker: (1, W) the language model's speaker token; None where it takes none. vector: (1, V), the flow's.
        text, tokens, latents: the prompt's words, ids (P,) and latents (D, F); "", empty and None for zero-shot.
    """

    speaker: Tensor | None
    vector: Tensor
    text: str
    tokens: Tensor
    latents: Tensor | None

    @property
    def prompt(self) -> Tensor | None:
        """The tokens that the flow goes on from; None without latents."""
        return None if self.latents is None else self.tokens


class LearnableSpeech(Pretrained, Speaker):
    """Text to speech in a voice. `vokens.load(folder)`, `LearnableSpeech.from_parts(...)`, then `say`.

    Args:
        lm: text to tokens. flow: tokens to latents. autoencoder: latents to sound.
        tokenizer: of a prompt's speech, whose tokens the others have learnt.
        speaker: CAM++, where the flow was trained with its vectors.

    Raises ConfigError for parts that do not fit each other.
    """

    system = "learnable"
    Config = LearnableConfig
    voice_type = HeardVoice

    def __init__(
        self,
        lm: LearnableLM,
        flow: LearnableFlow,
        autoencoder: DACVAE,
        tokenizer: Codec | None = None,
        speaker: CAMPPlus | None = None,
    ) -> None:
        super().__init__(LearnableConfig(tokenizer is not None, speaker is not None))
        _check(lm, flow, autoencoder, tokenizer, speaker)
        self.lm, self.flow, self.autoencoder, self.tokenizer = lm, flow, autoencoder, tokenizer
        self.speaker = speaker
        self.sample_rate, self.sampler, self.front_end = (
            autoencoder.sample_rate,
            Sampler(),
            lm.config.front_end,
        )
        self.paced = lm.beside

    @classmethod
    def from_parts(
        cls,
        *,
        lm: str | Path | LearnableLM,
        flow: str | Path | LearnableFlow,
        autoencoder: str | Path | DACVAE,
        tokenizer: str | Path | Codec | None = None,
        speaker: str | Path | CAMPPlus | None = None,
    ) -> Self:
        """One model of parts that were trained apart: folders, published files, names or models."""
        tokens = None if tokenizer is None else _opened(tokenizer, Codec)
        parts = _opened(lm, LearnableLM), _opened(flow, LearnableFlow), _opened(autoencoder, DACVAE)
        heard = open_campplus(speaker) if isinstance(speaker, (str, Path)) else speaker
        return cls(*parts, tokens, heard).eval().requires_grad_(False)

    # Speaking ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> HeardVoice:
        """As `Speaker.voice`. Raises AudioError for a prompt of more than 30 s, ConfigError for a text without a
        tokenizer."""
        wave, rate = audio.load(source, source_rate=sample_rate)
        speaker = None if self.lm.config.speaker is None else self.lm.voice(wave, sample_rate=rate)
        vector = self._vector(wave, rate)
        if not text.strip():
            return HeardVoice(speaker, vector, "", torch.zeros(0, dtype=torch.int64), None)
        if self.tokenizer is None:
            raise ConfigError(f"{self.name} has no tokenizer for prompts: leave the voice's text out")
        if len(wave) > PROMPT_SECONDS * rate:
            raise AudioError(
                f"the voice's recording has {len(wave) / rate:.1f} s: a prompt may have {PROMPT_SECONDS:g} s; cut it "
                "and its text, or leave the text out"
            )
        tokens = self.tokenizer.encode(wave, rate).codes[0, 0]
        return HeardVoice(
            speaker, vector, text.strip(), tokens, self.autoencoder.encode(wave, rate).values[0]
        )

    def _vector(self, wave: np.ndarray, rate: int) -> Tensor:
        """The flow's speaker vector (1, V)."""
        if self.speaker is None:
            return self.flow.voice(wave, sample_rate=rate)
        heard, _ = audio.load(wave, CAMPPLUS_RATE, source_rate=rate)
        return self.speaker.embed(
            [torch.from_numpy(heard[: int(SPEAKER_SECONDS * CAMPPLUS_RATE)]).to(self.device)]
        )

    @torch.inference_mode()
    def utter(
        self, pieces: Sequence[str], voice: HeardVoice | None, seeds: Sequence[int], manner: Manner
    ) -> list[np.ndarray]:
        heard = self._known(voice)
        generators = [generator_of(seed) for seed in seeds]
        tokens = self.lm.generate(
            pieces,
            speaker=heard.speaker,
            prompt_text=heard.text,
            prompt_speech=heard.tokens,
            sampler=manner.sampler,
            generator=generators,
            speed=manner.speed,
        )
        waves = [np.zeros(0, np.float32)] * len(pieces)
        rows = [row for row, ids in enumerate(tokens) if len(ids)]
        if rows:
            latents = self.flow.generate(
                [tokens[row] for row in rows],
                heard.vector,
                prompt_tokens=heard.prompt,
                prompt_latents=heard.latents,
                steps=manner.steps,
                guidance=manner.guidance,
                generator=[generators[row] for row in rows],
            )
            for row, wave in zip(rows, self.autoencoder.decode(self.flow.pack(latents)), strict=True):
                waves[row] = wave
        return waves

    @torch.inference_mode()
    def utter_stream(
        self, piece: str, voice: HeardVoice | None, seed: int, manner: Manner
    ) -> Iterator[np.ndarray]:
        """Sound after each chunk of the flow's; what `generate` and `decode` give of the same tokens under the flow's
        chunk mask with this seed's noise."""
        heard = self._known(voice)
        tokens = speech_tokens(self.lm, piece, heard, manner, seed)
        first = next(tokens, None)
        if first is None:
            return
        latents = self.flow.stream(
            _pieces(first, tokens),
            heard.vector,
            prompt_tokens=heard.prompt,
            prompt_latents=heard.latents,
            steps=manner.steps,
            guidance=manner.guidance,
            seed=seed,
        )
        yield from decode_stream(self.autoencoder, latents)

    def _known(self, voice: HeardVoice | None) -> HeardVoice:
        if voice is None:
            raise ConfigError(f"{self.name} speaks in a voice: give a recording of one, 3 s to 10 s long")
        return voice

    # Weights -----------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Pretrained]:
        parts: dict[str, Pretrained] = {"lm": self.lm, "flow": self.flow, "autoencoder": self.autoencoder}
        if self.tokenizer is not None:
            parts["tokenizer"] = self.tokenizer
        return parts

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Compute language model and flow in this floating-point type; what hears and decodes stays float32."""
        if not dtype.is_floating_point:
            raise ConfigError(
                f"{dtype} was given: Learnable-Speech computes in float32, bfloat16 and float16"
            )
        _ = self.fingerprint
        self.lm.set_dtype(dtype)
        self.flow.set_dtype(dtype)
        return self

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """Write each part into a folder of its own, with config.json and README.md above them."""
        folder = Path(folder)
        for name, part in self._parts().items():
            part.save_pretrained(folder / name, dtype=dtype if name in ("lm", "flow") else None)
        if self.speaker is not None:
            (folder / "speaker").mkdir(exist_ok=True)
            save_safetensors(folder / "speaker/model.safetensors", self.speaker.state_dict())
        config = {"system": self.system, "name": self.name, "config": asdict(self.config)}
        for name, text in (
            ("README.md", card or self.card()),
            ("config.json", json.dumps(config, indent=2) + "\n"),
        ):
            with atomic_write(folder / name) as partial:
                partial.write_text(text)
        return folder

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The model of a folder that `save_pretrained` wrote; None where it is no such folder."""
        if not (folder / "config.json").is_file():
            return None
        settings = read_json(folder / "config.json")
        if settings.get("system") != cls.system:
            return None
        there = build_config(LearnableConfig, settings["config"], str(folder / "config.json"))
        wanted = [name for name in PARTS if getattr(there, name, True)]
        missing = [name for name in wanted if not (folder / name).is_dir()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}: the folder is not whole")
        model = cls.from_parts(**{name: folder / name for name in wanted})
        model.name = settings.get("name", cls.system)
        return model


# Streams ------------------------------------------------------------------------------------------------------------


def speech_tokens(lm: LearnableLM, text: str, voice: HeardVoice, manner: Manner, seed: int) -> Iterator[int]:
    """The speech tokens of a text in a voice, one by one."""
    return lm.stream(
        text,
        speaker=voice.speaker,
        prompt_text=voice.text,
        prompt_speech=voice.tokens,
        sampler=manner.sampler,
        generator=generator_of(seed),
        speed=manner.speed,
    )


def decode_stream(autoencoder: DACVAE, latents: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Waves (n,) of latents (D, t) as they come: of each frame once those that the decoder reaches have come.

    Together they are the whole decoded at once; work and memory per piece do not grow.
    """
    reach, hop = autoencoder.decoder.reach, autoencoder.hop_length
    kept = torch.zeros(autoencoder.config.latent_dim, 0)  # what is still seen, and what is not yet given out
    done = 0  # of the kept frames, those that have been

    def sound(until: int) -> np.ndarray:
        z = kept[None].to(autoencoder.device, autoencoder.dtype)
        wave = autoencoder.decode_batch(z, torch.tensor([kept.shape[1]], device=autoencoder.device))
        return wave[0, done * hop : until * hop].float().cpu().numpy()

    for piece in latents:
        kept = torch.cat([kept.to(piece), piece], 1)
        ready = kept.shape[1] - reach
        if ready > done:
            yield sound(ready)
            begin = max(0, ready - reach)
            kept, done = kept[:, begin:], ready - begin
    if kept.shape[1] > done:
        yield sound(kept.shape[1])


def _opened(source: str | Path | Part, kind: type[Part]) -> Part:
    """A model of this kind, or the one that a source holds."""
    if isinstance(source, kind):
        return source
    from vokens.models import load

    model = load(cast(str | Path, source))
    if not isinstance(model, kind):
        raise CheckpointError(f"{source} holds a {model.system!r}: a {kind.__name__} is needed here")
    return model


def _pieces(first: int, others: Iterable[int]) -> Iterator[Tensor]:
    yield torch.tensor([first])
    for token in others:
        yield torch.tensor([token])


def _check(
    lm: LearnableLM,
    flow: LearnableFlow,
    autoencoder: DACVAE,
    tokenizer: Codec | None,
    speaker: CAMPPlus | None,
) -> None:
    """ConfigError for parts that do not fit each other."""
    if (flow.speaker_encoder is None) != (speaker is not None):
        raise ConfigError(
            "the flow has a speaker encoder of its own, and speaker= was given: leave it out"
            if speaker is not None
            else "the flow has no speaker encoder: give speaker=, CAM++'s weights, whose vectors it was trained with"
        )
    vae, settings = autoencoder.config, flow.config
    pairs = {
        "the flow's latents and the autoencoder's": (flow.latent_dim, vae.latent_dim),
        "the flow's latents per second and the autoencoder's": (settings.frame_rate, autoencoder.frame_rate),
        "weights of the flow's autoencoder and of this one": (
            settings.latents_fingerprint or autoencoder.fingerprint,
            autoencoder.fingerprint,
        ),
        "tokens of the language model and of the flow": (lm.config.speech_tokens, settings.flow.vocab_size),
    }
    if tokenizer is not None:
        pairs["tokens of the language model and of the tokenizer"] = (
            (lm.config.speech_tokens,),
            tokenizer.codebook_sizes,
        )
        pairs["weights of the flow's tokenizer and of this one"] = (
            settings.tokens_fingerprint or tokenizer.fingerprint,
            tokenizer.fingerprint,
        )
    for what, (one, other) in pairs.items():
        if one != other:
            raise ConfigError(f"{what} differ: {one} and {other}; give parts that were trained on each other")
