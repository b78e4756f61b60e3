"""S3Gen as one model: S3 tokens and a voice to a 24 kHz wave (CosyVoice 2 and 3, arXiv 2412.10117, 2505.17589;
Chatterbox).

Tokenizer and CAM++ embed the reference, the flow makes a mel, HiFT the wave. `inference`, `embed_ref` and `forward`
are called as published; `speak`, `stream` and `convert` are ours, and are batch-invariant.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import vokens.models.s3gen.releases as releases
from vokens import audio
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.batching import batches
from vokens.errors import AudioError, ConfigError
from vokens.flow.noise import PrefixNoise
from vokens.models.codec import Audio
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen.config import S3GenConfig, S3GenModelConfig
from vokens.models.s3gen.flow import MelStream, TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.synthesis import LONGEST, Ids, Sampling, Synthesis, Watermark, ids_of, rows_of
from vokens.models.s3gen.voice import (
    ReferenceVoice,
    VoiceLike,
    broadcast_voices,
    embed_ref,
    one_voice,
    voices_of,
)
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.nn.campplus import CAMPPlus
from vokens.nn.campplus_onnx import open_campplus
from vokens.nn.float32 import only_moves
from vokens.nn.streaming import Chunks
from vokens.tokens import Tokens, padded_ids

TOKENIZER_RATE = 16000  # Hz


class S3GenModel(Pretrained):
    """Tokens to speech in any voice. `vokens.load(...)` or `S3GenModel.from_pretrained(...)` of any release.

    Tokenizer and CAM++ stay float32 in every precision, and so do pitch, source and spectrum of the vocoder.

    Args:
        config: of all parts; an S3GenConfig means the published model around such a flow.
        tokenizer: a part that exists, as speaker_encoder, flow and mel2wav; others are made.

    Attributes:
        watermark: wave (N,) float32 and its rate in Hz to the wave that is given out; None for none.
    """

    system = "s3gen"
    Config = S3GenModelConfig

    def __init__(
        self,
        config: S3GenModelConfig | S3GenConfig,
        *,
        tokenizer: S3Tokenizer | None = None,
        speaker_encoder: CAMPPlus | None = None,
        flow: TokenToMel | None = None,
        mel2wav: HiFTNetModel | None = None,
    ) -> None:
        if isinstance(config, S3GenConfig):
            config = S3GenModelConfig.of_flow(config)
        super().__init__(config)
        self.tokenizer = tokenizer
        if tokenizer is None and config.tokenizer is not None:
            self.tokenizer = S3Tokenizer(config.tokenizer)
        if self.tokenizer is not None:
            self.tokenizer.name = config.tokens
        self.speaker_encoder = speaker_encoder
        if speaker_encoder is None and config.speaker_encoder:
            self.speaker_encoder = CAMPPlus()
        self.flow = TokenToMel(config.flow) if flow is None else flow
        self.mel2wav = HiFTNetModel(config.mel2wav) if mel2wav is None else mel2wav
        bands, highest = config.flow.mel_bins, config.flow.mel_f_max
        self._mel = LogMel(replace(MEL_24K_80, n_mels=bands, f_max=highest))
        self.watermark: Watermark | None = None
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Keep the tokenizer and speaker encoder in eval mode, so that BatchNorm uses running statistics."""
        super().train(mode)
        for part in (self.tokenizer, self.speaker_encoder):
            if part is not None:
                part.eval()
        return self

    @classmethod
    def from_parts(
        cls,
        *,
        flow: str | Path | TokenToMel,
        mel2wav: str | Path | HiFTNetModel,
        speaker: str | Path | CAMPPlus | None = None,
        tokenizer: str | Path | S3Tokenizer | None = None,
        name: str = "s3gen",
    ) -> Self:
        """One model of parts that were trained apart; `save_pretrained` makes it one folder.

        flow, mel2wav: folders that training wrote. speaker: a file of CAM++'s weights. tokenizer: the one whose tokens
        the flow has learnt. Without speaker or tokenizer the model speaks only in voices made elsewhere.

        Raises CheckpointError for another system than expected; ConfigError for parts that do not fit each other.
        """
        campplus = open_campplus(speaker) if isinstance(speaker, (str, Path)) else speaker
        codec = None if tokenizer is None else S3Tokenizer.from_pretrained(tokenizer)
        networks = TokenToMel.from_pretrained(flow), HiFTNetModel.from_pretrained(mel2wav)
        return releases.join(cls, *networks, campplus, codec).named(name)

    def named(self, name: str) -> Self:
        """This model under a name, ready for use."""
        self.name = name
        return self.freeze()

    # Voices ------------------------------------------------------------------------------------------------

    def embed_ref(
        self,
        ref_wav: Tensor | np.ndarray,
        ref_sr: int,
        *,
        lengths: Tensor | None = None,
        allow_silent: bool = False,
    ) -> dict[str, Any]:
        """The voice of a recording, or of each of several, to be given as ref_dict any number of times.

        Arguments, result and errors as of `voice.embed_ref`; 3 s to 10 s serve best. It names its tokenizer, by which a
        model of other tokens refuses the voice. Raises ConfigError for a model without tokenizer or speaker encoder.
        """
        if self.tokenizer is None or self.speaker_encoder is None:
            missing, file = "speaker encoder", "campplus.onnx"
            if self.tokenizer is None:
                missing, file = "tokenizer", f"{self.config.tokens.removesuffix('_25hz')}.onnx"
            raise ConfigError(
                f"{self.name} was loaded without a {missing} and cannot embed a reference: give another model's "
                f"ref_dict, or put {file} into the published folder, and convert that again where it was converted"
            )
        return embed_ref(
            ref_wav,
            ref_sr,
            tokenizer=self.tokenizer,
            speaker_encoder=self.speaker_encoder,
            mel=self._mel.to(self.device),
            lengths=lengths,
            cut_mel=self.config.flow.prompt_cut == "both",
            allow_silent=allow_silent,
        )

    def voice(self, ref_wav: Audio, ref_sr: int | None = None) -> ReferenceVoice:
        """The voice of one recording, as in `Codec.encode`, which also remembers its prompt for streams."""
        if ref_sr is None or not isinstance(ref_wav, Tensor | np.ndarray):
            ref_wav, ref_sr = audio.load(ref_wav, source_rate=ref_sr)
        return one_voice(self.embed_ref(ref_wav, ref_sr))

    # As published ------------------------------------------------------------------------------------------

    def forward(
        self,
        speech_tokens: Ids,
        ref_wav: Tensor | np.ndarray | None = None,
        ref_sr: int | None = None,
        ref_dict: VoiceLike | None = None,
        finalize: bool = True,
        speech_token_lens: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Log-mels (B, 80, T) float32, zero beyond each row's end; arguments as in `inference`.

        finalize: whether utterances end here. If not, the last 3 tokens are only looked at, and T is 6 less.
        """
        rows = self._rows(speech_tokens, speech_token_lens, finalize)
        voices = self._voices(len(rows), ref_wav, ref_sr, ref_dict)
        return self._synthesis.mels(rows, voices, Sampling.of(len(rows), sampling), finalize)[0]

    @torch.inference_mode()
    def inference(
        self,
        speech_tokens: Ids,
        ref_wav: Tensor | np.ndarray | None = None,
        ref_sr: int | None = None,
        ref_dict: VoiceLike | None = None,
        finalize: bool = True,
        speech_token_lens: Tensor | None = None,
        cache_source: Tensor | None = None,
        **sampling: Any,
    ) -> tuple[Tensor, Tensor]:
        """Waves (B, 960 N) in [-1, 1] of a batch, and sources (B, 1, 960 N), zero beyond each row's end.

        Above 750 tokens (30 s) a row is spoken in pieces of at most 500 that share 25: their mels cross-fade, the
        vocoder runs through, and memory is that of one piece. Give chunks to have all in one pass.

        speech_tokens: ids (N,), (B, N), or a list of (N,). speech_token_lens: (B,) how many of each row count.
        ref_wav: with ref_sr, as in `embed_ref`, one row for all or one each; or ref_dict, which embed_ref made.
        finalize: as in `forward`. cache_source: as in `HiFTNetModel.inference`. sampling: see `Sampling`.

        Raises TokensError, AudioError or ConfigError for bad tokens, reference or settings, before any heavy work.
        """
        rows = self._rows(speech_tokens, speech_token_lens, finalize)
        settings = Sampling.of(len(rows), sampling)
        voices = self._voices(len(rows), ref_wav, ref_sr, ref_dict)
        if any(map(settings.in_pieces, rows)) and (not finalize or cache_source is not None):
            raise ConfigError(
                f"{max(map(len, rows))} tokens were given, which are spoken in pieces from {LONGEST + 1} on: neither "
                "finalize=False nor cache_source goes with that; use stream"
            )
        synthesis = self._synthesis
        mels = synthesis.mels(rows, voices, settings, finalize)
        return synthesis.waves(*mels, rows, settings, cache_source)[:2]

    # Ours --------------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        return self.config.flow.sampling_rate

    def speak(
        self,
        tokens: Tokens | Ids,
        voice: VoiceLike | Sequence[VoiceLike],
        *,
        seed: int | Sequence[int] = 0,
        n_cfm_timesteps: int | None = None,
        guidance: float | None = None,
        batch_seconds: float = 60.0,
    ) -> list[np.ndarray]:
        """Speech of tokens: a list of float32 (T,) at `sample_rate`, independent of the other items of the batch.

        tokens: as `S3Tokenizer.encode` gives them, or ids (N,), (B, N), or a list of (N,).
        voice: of `voice` or `embed_ref`, one for all or one for each.
        batch_seconds: padded speech per forward pass; more is faster on GPUs and needs more memory.

        Raises TokensError for tokens of another tokenizer than this model speaks, or out of range.
        """
        rows = self._rows(self.ids(tokens) if isinstance(tokens, Tokens) else tokens, None, True)
        given = voice if isinstance(voice, Sequence) else [voice]
        known = self.config.tokens
        voices = broadcast_voices([one for item in given for one in voices_of(item, known)], len(rows))
        options = {"n_cfm_timesteps": n_cfm_timesteps, "guidance": guidance, "seed": seed}
        settings = Sampling.of(len(rows), options)
        speech: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        synthesis = self._synthesis
        tokens_each = [len(row) + len(one.voice.tokens) for row, one in zip(rows, voices, strict=True)]
        for group in batches(tokens_each, int(batch_seconds * self._token_rate)):
            some, own = [rows[row] for row in group], settings.rows(group)
            mels = synthesis.mels(some, [voices[row] for row in group], own)
            waves, _, counts = synthesis.waves(*mels, some, own)
            for row, wave, count in zip(group, waves.float().cpu().numpy(), counts, strict=True):
                speech[row] = wave[:count].copy()
        return speech

    def convert(
        self, source: Audio | Sequence[Audio], voice: VoiceLike, sample_rate: int | None = None, seed: int = 0
    ) -> list[np.ndarray]:
        """The recordings in another voice: float32 (T,) at `sample_rate` of each recording.

        source, sample_rate: as in `Codec.encode`. voice: as in `speak`.
        """
        return self.speak(self.tokenize(source, sample_rate), voice, seed=seed)

    def tokenize(self, source: Audio | Sequence[Audio], sample_rate: int | None = None) -> Tokens:
        """The tokens of recordings, as in `Codec.encode`."""
        if self.tokenizer is None:
            raise ConfigError(f"{self.name} has no tokenizer: encode with {self.config.tokens}, then speak")
        return self.tokenizer.encode(source, sample_rate)

    heard = tokenize  # deprecated

    def chunks(
        self, voice: VoiceLike, *, first_hop: int = 10, hop: int | None = None, context: int | None = 100
    ) -> Chunks:
        """The mask of a stream: chunks of `hop` tokens, one of which ends `first_hop` tokens after the prompt.

        hop: the release's chunk_size, 25, by default; at least first_hop. context: tokens before a chunk that it
        sees, rounded up to whole chunks; None for all, whose memory and work grow without end.
        """
        size = max(first_hop, self.config.flow.chunk_size) if hop is None else hop
        if not 1 <= first_hop <= size or (context is not None and context < 0):
            raise ConfigError(
                f"first_hop={first_hop}, hop={size}, context={context} were given: 1 to hop tokens at first, and a "
                "context of 0 or more are accepted"
            )
        prompt = self.flow.cut_prompt(one_voice(voice, self.config.tokens).voice)
        left = -1 if context is None else -(-context // size)
        return Chunks(size, left).with_border(len(prompt.tokens) + first_hop)

    def stream(
        self,
        tokens: Iterable[int | Ids],
        voice: VoiceLike,
        *,
        first_hop: int = 10,
        hop: int | None = None,
        context: int | None = 100,
        n_cfm_timesteps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Speech (n,) float32 while tokens arrive; together what `inference` gives under the mask of `chunks`.

        Sound of a chunk comes when its tokens and three more have, all but its last 386 ms, which the vocoder keeps
        until it knows what follows. Memory and work per chunk do not grow. A `ReferenceVoice` remembers its prompt.

        tokens: ids one by one, or pieces (n,) of any length. first_hop, hop, context: see `chunks`.
        """
        if self.watermark is not None:
            raise ConfigError("a watermark needs the whole wave: set model.watermark = None, or use speak")
        if isinstance(tokens, Tokens):
            (row,) = self.ids(tokens)
            tokens = [row]
        owner = one_voice(voice)
        chunks = self.chunks(owner, first_hop=first_hop, hop=hop, context=context)
        steps = Sampling.of(1, {"n_cfm_timesteps": n_cfm_timesteps}).n_cfm_timesteps
        with torch.inference_mode():
            plan = self.flow.schedule(steps, guidance=guidance)
        noise = PrefixNoise(self.config.flow.mel_bins, seed)
        stream = MelStream(self.flow, chunks=chunks, schedule=plan, noise=noise)
        ids = (torch.atleast_1d(torch.as_tensor(piece)) for piece in tokens)
        pieces = (part for piece in ids for part in piece.split(chunks.size))
        return self._synthesis.stream(stream.run(pieces, owner.start(stream)), seed)

    def tokens(self, ids: Any, lengths: Sequence[int] | Tensor | None = None) -> Tokens:
        """Tokens that this model speaks from bare ids, such as a language model's; arguments as in `Codec.tokens`."""
        codes, frames = padded_ids(ids, 1)
        counts = frames if lengths is None else torch.as_tensor(lengths)
        num_samples = counts.cpu() * round(TOKENIZER_RATE / self._token_rate)
        facts = self.config.tokens, self.config.tokens_fingerprint, TOKENIZER_RATE, self._token_rate
        return Tokens(codes, counts, num_samples, *facts, (self.config.flow.vocab_size,))

    def ids(self, tokens: Tokens) -> list[Tensor]:
        """Rows (N,) of tokens that this model speaks. Raises TokensError for those of another tokenizer."""
        return ids_of(tokens, self.name, self.config.tokens, self.config.tokens_fingerprint)

    # Inside ------------------------------------------------------------------------------------------------

    @property
    def _token_rate(self) -> float:
        """Tokens per second."""
        return self.sample_rate / self.mel2wav.config.hop_length / self.config.flow.token_mel_ratio

    @property
    def _synthesis(self) -> Synthesis:
        return Synthesis(self.flow, self.mel2wav, self.config.fade, self.watermark)

    def _rows(self, tokens: Ids, lengths: Tensor | None, finalize: bool) -> list[Tensor]:
        """Checked ids (N,) of each row, on this device."""
        least = 1 if finalize else self.config.flow.pre_lookahead_len + 1
        return self.flow.check_tokens(rows_of(tokens, lengths), least)

    def _voices(
        self, count: int, ref_wav: Any, ref_sr: int | None, ref_dict: VoiceLike | None
    ) -> list[ReferenceVoice]:
        if (ref_wav is None) == (ref_dict is None):
            raise ConfigError(
                f"{'neither' if ref_wav is None else 'both'} of ref_wav and ref_dict was given: one of them says "
                "whose voice it is"
            )
        if ref_dict is None and ref_sr is None:
            raise AudioError("ref_wav was given without ref_sr: give its rate in Hz")
        given = self.embed_ref(ref_wav, ref_sr or 0) if ref_dict is None else ref_dict
        return broadcast_voices(voices_of(given, self.config.tokens), count)

    # Weights and precision ---------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.flow.device

    @property
    def dtype(self) -> torch.dtype:
        return self.flow.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Half precision would change what the reference says and whose voice it is: there, parts only move."""
        for name, part in self.named_children():
            part._apply(only_moves(fn) if name in ("tokenizer", "speaker_encoder", "_mel") else fn, recurse)
        return self

    def fix_steps(self, steps: int | None = None) -> Self:
        """As `TokenToMel.fix_steps`."""
        self.flow.fix_steps(steps)
        return self

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The model of Chatterbox's one file, base or turbo; config: settings of S3GenConfig that shapes leave open."""
        return releases.from_chatterbox(cls, state, config)

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        return releases.from_folder(cls, folder, config)
