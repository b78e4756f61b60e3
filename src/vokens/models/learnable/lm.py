"""Learnable-Speech's first stage (MiniMax-Speech, arXiv 2505.07916; CosyVoice 2's Qwen2LM with a speaker encoder), and
CosyVoice 2's and 3's: text tokens to 25 Hz speech tokens, in the voice of a reference.

Text may come in pieces: every five text tokens are followed by fifteen speech tokens (`stream_text`).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vokens.models.learnable.checkpoint as published
from vokens import checkpoint
from vokens.audio import io as audio
from vokens.errors import ConfigError, TokensError
from vokens.flow.noise import Generators, broadcast_generators
from vokens.lm.cache import KVCache, left_padded
from vokens.lm.decode import by_rows, decode
from vokens.lm.positions import pace_of
from vokens.lm.qwen2 import Qwen2
from vokens.lm.sampling import COSYVOICE, SamplingParams
from vokens.models.learnable.config import LearnableLMConfig
from vokens.models.learnable.durations import DurationPredictor, expected_positions, frame_positions
from vokens.models.learnable.layout import Alignment, Layout, Pace
from vokens.models.learnable.prompt import PromptBuilder
from vokens.models.learnable.speaker import SpeakerEncoder, reference_mels
from vokens.models.pretrained import Pretrained
from vokens.nn.product import Linear
from vokens.text import front_end

Ids = Tensor | Sequence[int]
Text = str | Ids  # a string is converted by the config's front end


class LearnableLM(Pretrained):
    """Text tokens to speech tokens. `vokens.load(folder or published llm.pt)`."""

    system = "learnable_lm"
    Config = LearnableLMConfig

    def __init__(self, config: LearnableLMConfig) -> None:
        super().__init__(config)
        width = config.backbone.width
        self.backbone = Qwen2(config.backbone)
        self.marks = nn.Embedding(2, width) if config.own_marks else None  # start, task
        self.speech_embedding = nn.Embedding(config.outputs, width)
        self.head = Linear(width, config.outputs, bias=config.own_marks)
        for table in filter(None, (self.marks, self.speech_embedding)):
            nn.init.normal_(table.weight, std=0.02)  # as Qwen2 starts the text's
        self.speaker_encoder = self.speaker_project = None
        if config.speaker is not None:
            self.speaker_encoder = SpeakerEncoder(config.speaker)
            self.speaker_project = Linear(config.speaker.embed_dim, width)
        if config.positions == "aligned":
            self.durations = DurationPredictor(config.backbone.vocab_size, width)

    # Voices ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def voice(self, *sources: audio.Source, sample_rate: int | None = None) -> Tensor:
        """Speaker token (1, W) of one or more recordings of a voice, for `generate`.

        Recordings are embedded in pieces of 4 s, as in training, and their vectors averaged; a last piece below 2 s is
        left out. sample_rate: of arrays.
        """
        mels, lengths = reference_mels(sources, sample_rate, least=0.5)
        return self.speaker_of(mels.to(self.device, self.dtype), lengths.to(self.device))

    def speaker_of(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speaker tokens (B, W) of references' log-mels (B, N, n_mels, F), lengths (B, N) frames."""
        if self.speaker_encoder is None:
            raise ConfigError("this model has no speaker encoder (config.speaker is None)")
        return self.speaker_from(self.speaker_encoder.many(mels, lengths))

    def speaker_from(self, vector: Tensor) -> Tensor:
        """Speaker tokens (B, W) of speaker vectors (B, embed_dim) of any length."""
        if self.speaker_project is None:
            raise ConfigError("this model takes no speaker vectors (config.speaker is None)")
        return self.speaker_project(F.normalize(vector, dim=-1))

    # Training ----------------------------------------------------------------------------------------------

    def inputs(
        self,
        text: Tensor,
        text_lengths: Tensor,
        speech: Tensor,
        speech_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        bistream: bool | Sequence[bool] = False,
        loss_mask: Tensor | None = None,
    ) -> tuple[Tensor, Layout]:
        """Embeddings (B, L, W) of the sequences and their layout; the arguments are those of `forward`."""
        rows = [bistream] * len(text) if isinstance(bistream, bool) else list(bistream)
        lengths = text_lengths.tolist(), speech, speech_lengths.tolist()
        layout = Layout.of(self.config, *lengths, rows, speaker is not None, loss_mask)
        words = self.backbone.embed_tokens(text[:, : int(text_lengths.max())])
        start, task = self.mark_weights.expand(len(text), -1, -1).split(1, 1)
        voice = torch.zeros_like(start) if speaker is None else speaker[:, None].to(start.dtype)
        table = torch.cat([start, voice, task, words, self.speech_embedding(speech)], 1)
        return layout.embed(table), layout

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        speech: Tensor,
        speech_lengths: Tensor,
        *,
        speaker: Tensor | None = None,
        bistream: bool | Sequence[bool] = False,
        loss_mask: Tensor | None = None,
        durations: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, L, V) and targets (B, L), -1 where there is none, for the losses of `learnable.loss`.

        Args:
            text: ids (B, T), of any value beyond their lengths (B,) but inside the vocabulary.
            speech: the same (B, S).
            speaker: tokens (B, W) of `speaker_of`; None leaves the token out of the sequence.
            bistream: which rows alternate text and speech, where they have speech enough for it.
            loss_mask: (B, S) bool, which speech tokens are targets; None for all. The end and FILL always are.
            durations: (B, T) speech tokens of each id, for a model with positions = "aligned".
        """
        utterances = text, text_lengths, speech, speech_lengths
        x, layout = self.inputs(*utterances, speaker=speaker, bistream=bistream, loss_mask=loss_mask)
        positions = self.positions(layout, text_lengths, speech_lengths, durations)
        return self.head(self.backbone(x, positions)), layout.target

    def positions(
        self, layout: Layout, text_lengths: Tensor, speech_lengths: Tensor, durations: Tensor | None = None
    ) -> Tensor | None:
        """Positions (B, L) of layouts, None for 0, 1, 2 …: by the durations (B, T), or at each utterance's own pace;
        for bistream rows, whose end is not known, at the config's."""
        if self.config.positions == "sequence":
            return None
        if self.config.positions == "aligned":
            if durations is None or bool(layout.mixed.any()):
                raise ConfigError(
                    'positions = "aligned" without durations, or with bistream: durations of the text\'s ids and '
                    "bistream = 0 are accepted"
                )
            return layout.positions(Alignment(frame_positions(durations, text_lengths, speech_lengths)))
        pace = torch.where(layout.mixed, self.config.pace, speech_lengths / text_lengths)
        return layout.positions(Pace(pace[:, None]))

    # Generation --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        text: Sequence[Text],
        *,
        speaker: Tensor | None = None,
        prompt_text: Text = "",
        prompt_speech: Ids = (),
        sampler: SamplingParams | None = None,
        generator: Generators = None,
        limits: tuple[int, int] | None = None,
        speed: float = 1.0,
    ) -> list[Tensor]:
        """Speech tokens, int64 (S,), of each text.

        Args:
            text: each utterance, as a string where the config names a front end, or as ids.
            speaker: tokens (1, W) or (B, W) of `voice` or `speaker_of`; zeros where none is given and the model has
                a speaker encoder.
            prompt_text: transcript of the prompt (one-shot); one for all.
            prompt_speech: its tokens.
            sampler: sampling parameters, CosyVoice's by default. generator: one for all, or one for each, which makes
                rows independent of each other.
            limits: minimum and maximum number of tokens; else `bounds`.
            speed: 2 is twice as fast as the prompt, or without one the speech of the training data; other than 1 for
                models with positions = "progress" or "aligned" alone.

        Raises TokensError for an empty text, or ids outside the vocabularies.
        """
        prompts, bounds = self._prompts(text, speaker, prompt_text, prompt_speech, speed)
        bounds = [limits or each for each in bounds]
        generators = broadcast_generators(generator, len(text))
        return by_rows(self._decode(prompts, bounds, sampler, generators), len(text))

    @torch.inference_mode()
    def stream(
        self,
        text: Text,
        *,
        speaker: Tensor | None = None,
        prompt_text: Text = "",
        prompt_speech: Ids = (),
        sampler: SamplingParams | None = None,
        generator: torch.Generator | None = None,
        speed: float = 1.0,
    ) -> Iterator[int]:
        """Tokens of `generate` for one text, each as soon as it is sampled."""
        prompts, bounds = self._prompts([text], speaker, prompt_text, prompt_speech, speed)
        for (token,) in self._decode(prompts, bounds, sampler, [generator]):
            yield cast(int, token)

    @torch.inference_mode()
    def stream_text(
        self,
        text: Iterable[Ids],
        *,
        speaker: Tensor | None = None,
        prompt_text: Text = "",
        prompt_speech: Ids = (),
        sampler: SamplingParams | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Speech tokens of one utterance, one by one, while its text comes in pieces of any sizes.

        The sequence is that of bistream training: 15 tokens (`config.mix`) follow every 5 of the text, and the rest
        follows the last piece. Pieces are ids, which `ids` makes of strings; how the text is cut changes nothing.
        Other arguments as `generate`.
        """
        if self.config.positions == "aligned":
            raise ConfigError(
                f'{self.name} has positions = "aligned", which need the whole text: give it to generate or stream'
            )
        group, share = self.config.mix
        spelled = isinstance(prompt_text, str) and bool(self.config.front_end)
        before = front_end(self.config.front_end).both(str(prompt_text), "") if spelled else prompt_text
        words = self._check_text(before, empty=True)
        prompt_ids = self._check(prompt_speech, self.config.speech_tokens, "speech")
        (voice,) = self._voices(speaker, 1)
        prompt = self._begin(voice, Pace(self.config.pace or 1.0))
        cache, history, length = KVCache(self.config.backbone.layers), [], 0

        def speak(least: int, most: int) -> Iterator[int]:
            new: list[int] = []
            for (token,) in self._decode([prompt], [(least, most)], sampler, [generator], cache, [history]):
                new.append(cast(int, token))
                yield new[-1]
            history.extend(new)
            prompt.decoded(new)

        for piece in text:
            new = self._check_text(piece, empty=True)
            words, length = torch.cat([words, new]), length + len(new)
            while len(words) >= group:
                chunk = prompt_ids[:share]
                prompt.text(words[:group]).speech(chunk)
                words, prompt_ids = words[group:], prompt_ids[share:]
                yield from speak(share - len(chunk), share - len(chunk))
        if not length:
            raise TokensError("no text was given to stream_text: give at least one token")
        prompt.text(words).task().speech(prompt_ids)
        least, most = (limit - len(history) for limit in self.bounds(length))
        yield from speak(least, most)

    def _prompts(
        self,
        text: Sequence[Text],
        speaker: Tensor | None,
        prompt_text: Text,
        prompt_speech: Ids,
        speed: float,
    ) -> tuple[list[PromptBuilder], list[tuple[int, int]]]:
        """Prompt of each text, and its minimum and maximum number of tokens; arguments as `generate`."""
        texts = [self._read(item, prompt_text) for item in text]
        prompt_ids = self._check(prompt_speech, self.config.speech_tokens, "speech")
        prompts = [
            self._prompt(voice, ids, own, prompt_ids, speed)
            for voice, (ids, own) in zip(self._voices(speaker, len(texts)), texts, strict=True)
        ]
        bounds = [self.bounds(own, speed, each) for (_, own), each in zip(texts, prompts, strict=True)]
        return prompts, bounds

    def _decode(
        self,
        prompts: list[PromptBuilder],
        limits: list[tuple[int, int]],
        sampling: SamplingParams | None,
        generators: Sequence[torch.Generator | None],
        cache: KVCache | None = None,
        history: Sequence[Sequence[int]] = (),
    ) -> Iterator[list[int | None]]:
        """Tokens that follow prompts: see `vokens.lm.decode`. cache: of a prompt that is not the first."""
        if all(most <= 0 for _, most in limits):
            return
        speeches, count = [torch.tensor([prompt.speeches]) for prompt in prompts], 0
        embeddings, positions = zip(*(prompt.take() for prompt in prompts), strict=True)
        x, mask = left_padded(embeddings)
        read = cache or KVCache(self.config.backbone.layers, mask)

        def step(last: Tensor) -> Tensor:
            nonlocal count
            places = [each.clock.speech(n + count) for each, n in zip(prompts, speeches, strict=True)]
            count += 1
            x = self.speech_embedding(last.to(self.device))[:, None]
            return self._logits(x, torch.stack(places).to(self.device), read)

        logits = self._logits(x, left_padded(positions)[0], read)
        options = {"end": self.config.end, "limits": limits, "generators": generators, "history": history}
        yield from decode(logits, step, sampling or COSYVOICE, **options)

    def _logits(self, x: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) float32 of what follows x (B, n, W) at positions (B, n) of progress."""
        states = self.backbone(x, positions if self.beside else None, cache)
        return self.drawable(self.head(states[:, -1]).float())

    def drawable(self, logits: Tensor) -> Tensor:
        """Mask logits (B, V) of ids that are neither codes nor the end."""
        end = logits[:, self.config.end].clone()
        logits[:, self.config.speech_tokens :] = -torch.inf
        logits[:, self.config.end] = end
        return logits

    @property
    def mark_weights(self) -> Tensor:
        """Embeddings (2, W) of start and task."""
        return (self.marks or self.speech_embedding).weight[self.config.mark_rows]

    @property
    def beside(self) -> bool:
        """Whether positions of speech are those of its text."""
        return self.config.positions != "sequence"

    def bounds(self, text: int, speed: float = 1.0, prompt: PromptBuilder | None = None) -> tuple[int, int]:
        """Minimum and maximum number of speech tokens of `text` ids: by `config.speech_per_text` and speed; with
        an alignment, three and five quarters of the expected number."""
        if prompt is not None and isinstance(prompt.clock, Alignment):
            expected = len(prompt.clock.frames) - 1 - prompt.speeches
            return 3 * expected // 4, -(-5 * expected // 4)
        least, most = self.config.speech_per_text
        return int(text * least / speed), int(text * most / speed)

    def _prompt(
        self, voice: Tensor, ids: Tensor, own: int, prompt_ids: Tensor, speed: float
    ) -> PromptBuilder:
        """Input of a text up to the prompt's speech; `own` of its ids are not the prompt's."""
        if self.config.positions == "aligned":
            speaker = voice if len(voice) else torch.zeros_like(self.speech_embedding.weight[:1])
            durations = self.durations.expected(ids, speaker)
            frames = expected_positions(durations, len(ids) - own, len(prompt_ids), speed)
            clock: Pace | Alignment = Alignment(frames.cpu())
        else:
            clock = Pace(pace_of(self.config.pace, len(ids) - own, len(prompt_ids), speed))
        return self._begin(voice, clock).text(ids).task().speech(prompt_ids)

    def _begin(self, voice: Tensor, clock: Pace | Alignment) -> PromptBuilder:
        tables = self.mark_weights, self.backbone.embed_tokens, self.speech_embedding
        return PromptBuilder(*tables, voice, clock)

    def _voices(self, speaker: Tensor | None, count: int) -> list[Tensor]:
        """Speaker token (1, W) of each row, or (0, W) where the model has none."""
        width = self.config.backbone.width
        if self.config.speaker is None:
            if speaker is not None:
                raise ConfigError("this model takes no speaker token (config.speaker is None)")
            return [self.speech_embedding.weight[:0]] * count
        if speaker is None:
            return [torch.zeros_like(self.speech_embedding.weight[:1])] * count
        if speaker.dim() != 2 or len(speaker) not in (1, count) or speaker.shape[1] != width:
            raise ConfigError(f"speaker {tuple(speaker.shape)}: not (1, {width}) or ({count}, {width})")
        return list(speaker.to(self.device, self.dtype).expand(count, -1).split(1))

    def ids(self, text: str) -> list[int]:
        """Ids of a text. Raises ConfigError where the config names no front end, or it cannot spell the text."""
        if not self.config.front_end:
            raise ConfigError(
                f"{self.name} was trained on ids and names no front end: give ids, or set config.front_end; beside "
                "CosyVoice's llm.pt belongs its folder CosyVoice-BlankEN"
            )
        return front_end(self.config.front_end).symbols(text)

    def _read(self, text: Text, prompt_text: Text) -> tuple[Tensor, int]:
        """Ids of the prompt's text and the text, and the number of the text's own."""
        own = self._check_text(text)
        if isinstance(text, str) and isinstance(prompt_text, str):
            return self._check_text(front_end(self.config.front_end).both(prompt_text, text)), len(own)
        return torch.cat([self._check_text(prompt_text, empty=True), own]), len(own)

    def _check_text(self, text: Text, empty: bool = False) -> Tensor:
        ids = (self.ids(text) if text else []) if isinstance(text, str) else text
        if len(ids) == 0 and not empty:
            raise TokensError("an empty text was given: give at least one token")
        return self._check(ids, self.config.backbone.vocab_size, "text")

    def _check(self, ids: Ids, size: int, kind: str) -> Tensor:
        values = torch.as_tensor(ids, device=self.device).long()
        if values.dim() != 1 or (len(values) and not 0 <= int(values.min()) <= int(values.max()) < size):
            raise TokensError(
                f"{kind} {tuple(values.shape)}: ids (n,) in 0 ... {size - 1} are accepted; got {values.tolist()[:8]}"
            )
        return values

    # Weights -----------------------------------------------------------------------------------------------

    @classmethod
    def settings_beside(cls, path: Path) -> dict[str, Any]:
        return published.settings_beside(path)

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any = None) -> Self:
        """Learnable-Speech's weights, or CosyVoice 2's or 3's llm.pt, which have no speaker encoder."""
        model = cls.with_weights(published.configure(state, config), published.TABLE.to_ours(state))
        if model.config.speaker is None:
            model.name = model.config.release
        return model

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the published names."""
        speaker = self.config.speaker
        checkpoint.check_publishable(
            positions=(self.config.positions, "sequence"),
            speaker_published=(speaker is None or speaker.published, True),
        )
        return published.to_published(self.state_dict())

    def warm_start(self, source: Any) -> Self:
        """Start from a published llm.pt (CosyVoice's have no speaker encoder, which stays fresh), or from Qwen2's
        transformers folder, which fills the backbone alone. Raises CheckpointError where sizes or releases differ."""
        checkpoint.load_strict(self, published.started(self.state_dict(), source, self.config), source)
        return self
