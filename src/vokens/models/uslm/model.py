"""USLM (SpeechTokenizer, arXiv 2308.16692 §3.3): text to SpeechTokenizer's tokens, in the voice of a prompt.

The AR network continues the prompt's first codebook with a KV cache, the NAR network predicts the other seven
greedily. Texts of a batch are padded and masked, so that results are batch-invariant.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

import vokens.models.uslm.checkpoint as layout
from vokens import checkpoint
from vokens.errors import ConfigError, TokensError
from vokens.flow.noise import Generators, broadcast_generators
from vokens.lm.cache import KVCache
from vokens.lm.decode import by_rows, decode
from vokens.lm.positions import pace_of
from vokens.lm.sampling import SamplingParams
from vokens.models.pretrained import Pretrained
from vokens.models.uslm.config import USLMConfig
from vokens.models.uslm.networks import Autoregressive, NonAutoregressive
from vokens.nn.masks import padding_mask
from vokens.one_or_list import one_or_list
from vokens.text import front_end
from vokens.text.front_end import PAD
from vokens.tokens import Tokens


class USLM(Pretrained):
    """Text to tokens that SpeechTokenizer decodes. `vokens.load(folder or published checkpoint)`."""

    system = "uslm"
    Config = USLMConfig

    def __init__(self, config: USLMConfig) -> None:
        super().__init__(config)
        needed = front_end(config.front_end).num_ids
        if config.text_symbols < needed:
            raise ConfigError(f"text_symbols={config.text_symbols}: {config.front_end!r} needs {needed}")
        self.ar = Autoregressive(config)
        self.nar = NonAutoregressive(config)

    @property
    def frame_rate(self) -> float:
        return self.config.sample_rate / self.config.hop_length

    # What users call ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        texts: str | Sequence[str],
        prompt: Tokens | None = None,
        prompt_text: str | Sequence[str] = "",
        *,
        sampling: SamplingParams | None = None,
        generator: Generators = None,
        max_frames: int | None = None,
        spelling: str = "",
        speed: float = 1.0,
    ) -> Tokens:
        """Generate tokens of texts, in the voice of a prompt: `codec.decode(model.generate("Hello.", ...))`.

        Args:
            texts: one text or a list of them.
            prompt: SpeechTokenizer's tokens of a few seconds of the voice, `codec.encode("voice.wav")`: one item
                for all texts or one for each. prompt_text: its transcript, likewise.
            sampling: sampling parameters; the full distribution by default.
            generator: one for all texts, or one for each, which makes them independent of each other; None is
                torch's default.
            max_frames: end all speech there at the latest. spelling: another front end than the config's, e.g.
                "phonemes" for texts that are phonemes already.
            speed: 2 is twice as fast as the prompt, or without one the speech of the training data; other than 1 for
                models with positions = "progress" alone.

        Raises ConfigError for texts without anything to say or with symbols that the front end does not have;
        TokensError for a prompt of another codec, or none where the model cannot start without one.
        """
        text_list = one_or_list(texts, lambda text: isinstance(text, str), "a text", ConfigError)
        spell = front_end(spelling or self.config.front_end)
        if spell.num_ids > self.config.text_symbols:
            raise ConfigError(
                f"spelling={spelling!r} needs {spell.num_ids} symbols, this model has {self.config.text_symbols}"
            )
        prompt_texts = [prompt_text] * len(text_list) if isinstance(prompt_text, str) else list(prompt_text)
        if len(prompt_texts) != len(text_list):
            raise ConfigError(f"{len(prompt_texts)} prompt texts for {len(text_list)} texts: one or one each")
        pairs = zip(text_list, prompt_texts, strict=True)
        ids = [torch.tensor(spell.ids(text, before)) for text, before in pairs]
        own = [len(spell.ids(text)) for text in text_list]
        rows = self._prompt_rows(prompt, len(text_list))
        codes = self.speak(ids, rows, own, sampling or SamplingParams(), generator, max_frames, speed)
        lengths = torch.tensor([len(row) for row in codes])
        return Tokens(
            codes=nn.utils.rnn.pad_sequence(codes, batch_first=True).transpose(1, 2).cpu(),
            lengths=lengths,
            num_samples=lengths * self.config.hop_length,
            model=self.config.codec if prompt is None else prompt.model,
            fingerprint=self.config.fingerprint if prompt is None else prompt.fingerprint,
            sample_rate=self.config.sample_rate,
            frame_rate=self.frame_rate,
            codebook_sizes=(self.config.codebook_size,) * self.config.num_codebooks,
        )

    def speak(
        self,
        ids: Sequence[Tensor],
        prompts: Sequence[Tensor],
        own: Sequence[int],
        sampling: SamplingParams,
        generator: Generators = None,
        max_frames: int | None = None,
        speed: float = 1.0,
    ) -> list[Tensor]:
        """Codes (T, K) of each item, without its prompt's.

        ids: (L,) of each text, its prompt's text included. own: number of these that are the text's own, start
        and end included. prompts: codes (P, K) of each, P = 0 for none.
        """
        text_lengths = torch.tensor([len(row) for row in ids], device=self.device)
        text = nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=PAD).to(self.device)
        counts = text_lengths.tolist() if self.config.published_stop else own
        limits = [self.config.frames_per_symbol * count + 1 for count in counts]
        if max_frames is not None:
            if max_frames < 1:
                raise ConfigError(f"max_frames={max_frames} was given: 1 and above are accepted")
            limits = [min(limit, max_frames) for limit in limits]
        paces = [
            pace_of(self.config.pace, len(row) - count, len(prompt), speed)
            for row, count, prompt in zip(ids, own, prompts, strict=True)
        ]
        pace = torch.tensor(paces, device=self.device) if self.config.pace else None
        given = [row[:, 0] for row in prompts]
        firsts = self.continue_first(text, text_lengths, given, limits, sampling, generator, pace)
        if self.config.prefix_mode == 2:  # the NAR network sees the text without its prompt's
            ids = [
                torch.cat([row[:1], row[len(row) - count + 1 :]]) for row, count in zip(ids, own, strict=True)
            ]
            text_lengths = torch.tensor(own, device=self.device)
            text = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD).to(self.device)
        return self.fill_in(text, text_lengths, prompts, firsts)

    def continue_first(
        self,
        text: Tensor,
        text_lengths: Tensor,
        prompts: Sequence[Tensor],
        limits: Sequence[int],
        sampling: SamplingParams,
        generator: Generators = None,
        pace: Tensor | None = None,
    ) -> list[Tensor]:
        """New codes (T,) of the first codebook, 1 to limits[row], after text (B, L) and prompts (P,), at paces (B,)."""
        frames = torch.tensor([len(row) for row in prompts], device=self.device)
        codes = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(self.device)
        cache = KVCache(self.config.layers)
        hidden = self.ar(text, text_lengths, codes, frames, cache, pace)
        last = torch.where(frames > 0, text.shape[1] + frames, text_lengths) - 1

        def step(codes: Tensor) -> Tensor:
            nonlocal frames
            hidden = self.ar.step(codes.to(self.device), frames, cache, pace)
            frames = frames + 1
            return self.ar.predict(hidden)

        steps = decode(
            self.ar.predict(hidden[torch.arange(len(text), device=self.device), last]),
            step,
            sampling,
            end=self.config.end,
            limits=[(1, limit) for limit in limits],
            generators=broadcast_generators(generator, len(prompts)),
            end_if_likeliest=self.config.published_stop,
        )
        return [row.to(self.device) for row in by_rows(steps, len(prompts))]

    def fill_in(
        self, text: Tensor, text_lengths: Tensor, prompts: Sequence[Tensor], firsts: Sequence[Tensor]
    ) -> list[Tensor]:
        """All codes (T, K) of each item, from its prompt's (P, K) and its first codebook's (T,); greedily."""
        mode, books = self.config.prefix_mode, self.config.num_codebooks
        starts = torch.tensor([len(row) for row in prompts], device=self.device)
        lengths = starts + torch.tensor([len(row) for row in firsts], device=self.device)
        codes = torch.zeros(len(firsts), int(lengths.max()), books, dtype=torch.int64, device=self.device)
        for row, (before, after) in enumerate(zip(prompts, firsts, strict=True)):
            codes[row, : len(before)] = before
            codes[row, len(before) : int(lengths[row]), 0] = after
        is_prompt = padding_mask(starts, codes.shape[1])  # (B, N)
        speech = self.nar.embed(codes[..., 0], 0)
        if mode:  # all of the prompt from the first stage on
            for book in range(1, books):
                speech = speech + self.nar.embed(codes[..., book], book) * is_prompt[..., None]
        for stage in range(1, books):
            hidden = self.nar(text, text_lengths, speech, lengths, stage)[:, text.shape[1] :]
            prediction = self.nar.logits(hidden, stage).argmax(-1)
            codes[..., stage] = torch.where(is_prompt, codes[..., stage], prediction)
            added = self.nar.embed(codes[..., stage], stage)
            speech = speech + (added * ~is_prompt[..., None] if mode else added)
        bounds = zip(codes, starts.tolist(), lengths.tolist(), strict=True)
        return [row[start:length] for row, start, length in bounds]

    def _prompt_rows(self, prompt: Tokens | None, count: int) -> list[Tensor]:
        """Codes (P, K) of each item's prompt."""
        books = self.config.num_codebooks
        if prompt is None:
            rows = [torch.zeros(0, books, dtype=torch.int64)] * count
        else:
            self._check(prompt, count)
            rows = [codes[:, :n].T for codes, n in zip(prompt.codes, prompt.lengths.tolist(), strict=True)]
            rows = rows * count if len(rows) == 1 else rows
        if self.config.published_targets and min(len(row) for row in rows) == 0:
            raise TokensError(
                "a prompt of at least one frame is needed: this model was never trained on an utterance's first "
                "code. Give prompt=codec.encode('voice.wav') and its prompt_text"
            )
        return [row.to(self.device) for row in rows]

    def _check(self, prompt: Tokens, count: int) -> None:
        expected = (self.config.codebook_size,) * self.config.num_codebooks, self.frame_rate, 0
        given = prompt.codebook_sizes, prompt.frame_rate, prompt.first_codebook
        if given != expected:
            raise TokensError(
                f"the prompt is {prompt!r}; {self.name} speaks all {self.config.num_codebooks} codebooks of "
                f"{self.config.codebook_size} at {self.frame_rate:g} Hz: encode it with {self.config.codec}"
            )
        known = self.config.fingerprint
        if known and prompt.fingerprint and prompt.fingerprint != known:
            raise TokensError(
                f"the prompt is {prompt!r} (fingerprint {prompt.fingerprint}); {self.name} speaks the tokens of "
                f"{self.config.codec!r} (fingerprint {known}): encode the prompt with that codec"
            )
        if len(prompt) not in (1, count):
            raise TokensError(f"{len(prompt)} prompts were given for {count} texts: one for all or one each")

    # Weights -----------------------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any = None) -> Self:
        """The model with published weights.

        config: settings of `USLMConfig` that shapes do not tell (`heads`, `front_end`, `prefix_mode`), as a
        dict; the released model's by default. It has 16 heads.

        Raises CheckpointError for missing, unexpected or misshapen tensors.
        """
        settings = layout.configure(state, config)
        return cls.with_weights(settings, layout.to_ours(state, settings))

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the published names, copies included: what the released code loads."""
        checkpoint.check_publishable(positions=(self.config.positions, "sequence"))
        return layout.to_published(self.state_dict(), self.config)
