"""USLM with its codec: text to speech that continues a prompt in its voice.

The NAR network needs all of a sentence's first codebook, so a stream comes sentence by sentence.
"""

from collections.abc import Sequence

import numpy as np

from vokens import audio
from vokens.errors import ConfigError, VokensError
from vokens.lm.sampling import SamplingParams
from vokens.models.codec import Audio, Codec
from vokens.models.pretrained import Pretrained
from vokens.models.speaking import Speaker, SynthesisOptions, generator_of
from vokens.models.uslm.model import USLM
from vokens.tokens import Tokens

# system in a config -> released codec
RELEASED = {"speechtokenizer": "speechtokenizer_hubert_avg"}


class USLMSpeech(Speaker):
    """Text to speech. uslm: text to tokens. codec: tokens to speech; that of the config's name by default."""

    system, voice_type = "uslm", tuple
    needs_voice = False

    def __init__(self, uslm: USLM, codec: Pretrained | None = None) -> None:
        settings = uslm.config
        if codec is None:
            name = RELEASED.get(settings.codec, settings.codec)
            try:
                codec = Codec.from_pretrained(name, device=uslm.device)
            except VokensError as error:
                raise ConfigError(
                    f"the codec of {uslm.name}, {name!r}, cannot be opened: {error}; name it"
                ) from error
        if not isinstance(codec, Codec) or not codec.decodes:
            raise ConfigError(f"{codec.name} is a {codec.system}: {uslm.name} needs a codec that decodes")
        needed = (settings.codebook_size,) * settings.num_codebooks, uslm.frame_rate
        if (codec.codebook_sizes, codec.frame_rate) != needed:
            raise ConfigError(
                f"{codec.name} has codebooks {codec.codebook_sizes} at {codec.frame_rate:g} Hz: {uslm.name} speaks "
                f"{needed[0]} at {needed[1]:g} Hz; name the codec that it was trained with"
            )
        self.uslm, self.codec = uslm, codec
        self.sample_rate, self.front_end = codec.sample_rate, settings.front_end
        self.sampler, self.paced = SamplingParams(), settings.positions == "progress"

    def voice(self, source: Audio, text: str = "", *, sample_rate: int | None = None) -> tuple[Tokens, str]:
        """A prompt and its transcript, which USLM requires."""
        if not text.strip():
            raise ConfigError(
                f"{self.uslm.name} continues the recording and needs its words: give them with --voice-text, "
                "in Python with voice_text="
            )
        wave, rate = audio.load(source, source_rate=sample_rate)
        return self.codec.encode(wave, rate), text.strip()

    def synthesize(
        self,
        pieces: Sequence[str],
        voice: tuple[Tokens, str] | None,
        seeds: Sequence[int],
        options: SynthesisOptions,
    ) -> list[np.ndarray]:
        prompt, said = voice if voice is not None else (None, "")
        tokens = self.uslm.generate(
            pieces,
            prompt,
            said,
            sampling=options.sampler or self.sampler,
            generator=[generator_of(seed) for seed in seeds],
            speed=options.speed,
        )
        return self.codec.decode(tokens)
