"""Training Learnable-Speech's language model (MiniMax-Speech, arXiv 2505.07916 §3; CosyVoice 2, arXiv 2412.10117 §2.3):
text to speech tokens in the voice of a reference, which is a piece of another utterance of the same speaker.

Preferences (DPO, arXiv 2305.18290) are a mode of the same task: pairs of tokens, and a frozen reference model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.learnable.config import LearnableLMConfig
from vokens.models.learnable.durations import duration_loss
from vokens.models.learnable.layout import IGNORE, alternates
from vokens.models.learnable.lm import LearnableLM
from vokens.models.learnable.loss import accuracy, dpo_loss, label_loss, sum_log_probs
from vokens.models.learnable.speaker import REFERENCE_RATE, REFERENCE_SECONDS, ReferenceMel
from vokens.text import front_end
from vokens.train.alignment import ENOUGH, Aligner
from vokens.train.config import RunConfig, refuse
from vokens.train.data import Clip, TensorBatch, pcm_rows, wave_of
from vokens.train.log import Board
from vokens.train.loop import Trainer
from vokens.train.pairs import Pairs, read_pairs
from vokens.train.rows import Rows
from vokens.train.text_tokens import (
    SpokenTexts,
    TextBatch,
    TextBatches,
    TextDataConfig,
    check_same_codec,
    dropout_mask,
    open_texts,
)

OWN_SHARE = 1 / 3  # largest share of an utterance that serves as its own reference


@dataclass(frozen=True)
class PreferenceConfig:
    """Preference optimisation; `data.train` is then a file of pairs (`vokens.train.pairs`)."""

    beta: float = 0.0  # of DPO, in CosyVoice 0.01; 0 trains without pairs
    reference: str = ""  # folder of the frozen reference model; "" is SimPO, which has none
    per_token: bool = False  # divide log-probabilities by the number of tokens, as SimPO does
    supervised: float = 1.0  # weight of the usual loss of the chosen tokens


@dataclass(frozen=True)
class LearnableLMRunConfig(RunConfig):
    """One run. model: settings that differ from LearnableLMConfig; the number of speech tokens and their pace come from
    the data, and the backbone's vocabulary is at least the front end's.

    Attributes:
        bistream: share of utterances that alternate text and speech, where they can.
        token_dropout: share of input tokens that are masked (word dropout, arXiv 1511.06349 §3.1), so that a small
            corpus teaches the text and not only the preceding tokens.
        smoothing: of labels. length_normalised: mean loss over targets; else their sum over the utterances.
        init: a published llm.pt (CosyVoice 3's with model.release = "cosyvoice3"), a transformers folder of Qwen2, or a
            trained folder.
    """

    task: str = "learnable_lm"
    system: str = "learnable_lm"
    out: str = "runs/learnable_lm"
    data: TextDataConfig = field(default_factory=TextDataConfig)
    bistream: float = 0.5
    token_dropout: float = 0.0
    smoothing: float = 0.0
    length_normalised: bool = True
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.model, ("speech_tokens", "pace"))
        if not self.model.get("front_end"):
            raise ConfigError('model.front_end is empty: say how text becomes ids, e.g. "characters"')
        if self.model.get("positions") == "aligned" and (self.bistream or self.preference.beta):
            raise ConfigError(
                'model.positions = "aligned" needs the whole text and its alignment: bistream = 0 is accepted, and no '
                "preference"
            )
        if not (0 <= self.bistream <= 1 and 0 <= self.smoothing < 1 and 0 <= self.token_dropout < 1):
            raise ConfigError("bistream, token_dropout and smoothing are shares: 0 to 1 are accepted")
        if self.preference.beta < 0 or (self.preference.reference and not self.preference.beta):
            raise ConfigError("preference.beta must be above 0 where preference.reference is given")


@dataclass(frozen=True)
class Voices(TensorBatch):
    """Speaker references, layouts and masks of a batch of B rows."""

    mels: Tensor  # (B, 1, 80, F)
    lengths: Tensor  # (B, 1) frames, 0 where there is no reference
    bistream: list[bool]  # which rows alternate
    loss_mask: Tensor | None  # (B, T) bool, True for targets: not tokens that the reference was cut from
    dropout_mask: Tensor | None  # (B, T) bool, True where inputs are masked, still predicted


class References:
    """Speaker references: a piece of another utterance of the same speaker, else of the utterance itself.

    Args:
        pcm: samples of all clips at 24 kHz; clips without any are never references.
    """

    def __init__(self, clips: Sequence[Clip], pcm: Rows) -> None:
        self.pcm, self.mel = pcm, ReferenceMel()
        self.seconds = np.diff(pcm.offsets) / REFERENCE_RATE
        self.speaker = [clip.speaker for clip in clips]
        self.of_speaker: dict[str | None, list[int]] = {}
        for row, clip in enumerate(clips):
            if clip.speaker is not None and self.seconds[row]:
                self.of_speaker.setdefault(clip.speaker, []).append(row)

    def draw(self, row: int, draw: np.random.Generator) -> tuple[Tensor | None, tuple[float, float] | None]:
        """Mel (80, F) of a random reference, None without audio; and its span in seconds where it is a piece of the
        utterance itself, else None."""
        where, length, at = draw.random(3)
        others = [other for other in self.of_speaker.get(self.speaker[row], []) if other != row]
        if not others and not self.seconds[row]:
            return None, None
        source = others[int(where * len(others))] if others else row
        most = self.seconds[source] * (1.0 if others else OWN_SHARE)
        shortest, longest = REFERENCE_SECONDS
        taken = min(most, shortest + length * (longest - shortest))
        start = at * (self.seconds[source] - taken)
        first, last = int(start * REFERENCE_RATE), int((start + taken) * REFERENCE_RATE)
        wave = wave_of(self.pcm[source][first:last])
        return self.mel(torch.from_numpy(wave)), None if others else (start, start + taken)


class LMLearner(nn.Module):
    """A LearnableLM whose forward pass returns logits, targets and, with an alignment, the loss of its durations."""

    def __init__(self, lm: LearnableLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self, batch: TextBatch, voices: Voices, every_place: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (N, V) and targets (N,) of the positions with targets, or (B, L, V) and (B, L) of every position.

        The head over text and padding would cost a small model as much as its backbone.
        """
        lm = self.lm
        speaker = None if lm.config.speaker is None else lm.speaker_of(voices.mels, voices.lengths)
        x, layout = lm.inputs(
            batch.text,
            batch.text_lengths,
            batch.codes[..., 0],
            batch.lengths,
            speaker=speaker,
            bistream=voices.bistream,
            loss_mask=voices.loss_mask,
        )
        if voices.dropout_mask is not None:
            x = x.masked_fill(layout.speech(voices.dropout_mask)[..., None], 0.0)
        hidden = lm.backbone(x, lm.positions(layout, batch.text_lengths, batch.lengths, batch.durations))
        lengths = None if batch.durations is None else self._durations(batch, batch.durations, speaker)
        if every_place:
            return lm.head(hidden), layout.target, lengths
        loss_mask = layout.target != IGNORE
        return lm.head(hidden[loss_mask]), layout.target[loss_mask], lengths

    def _durations(self, batch: TextBatch, durations: Tensor, speaker: Tensor | None) -> Tensor:
        """Loss of the durations, without a gradient to the speaker encoder."""
        if speaker is None:
            speaker = torch.zeros(len(durations), self.lm.config.backbone.width, device=durations.device)
        prediction = self.lm.durations(batch.text, batch.text_lengths, speaker.detach())
        return duration_loss(prediction, durations, batch.text_lengths)


class LearnableLMTrainer(Trainer[LearnableLMRunConfig, LMLearner]):
    """Trains a LearnableLM."""

    Config = LearnableLMRunConfig
    exported = inside = "lm"

    def build_model(self) -> LMLearner:
        config, data = self.config, self.config.data
        self.pairs = read_pairs(data.train) if config.preference.beta else None
        if self.pairs is None:
            self.corpus = open_texts(data, data.train, data.train_split, self.device)
        else:
            self.corpus = self.pairs.chosen
        sizes = self.corpus.facts.codebook_sizes
        if len(sizes) != 1:
            raise ConfigError(f"the tokens have {len(sizes)} codebooks; this model speaks one: S3Tokenizer's")
        self.spell = front_end(config.model["front_end"])
        backbone = {"vocab_size": self.spell.num_ids} | config.model.get("backbone", {})
        of_the_tokens = {"speech_tokens": sizes[0], "tokens": self.corpus.facts.model}
        values = config.model | {"backbone": backbone} | of_the_tokens
        self.train = self._batches(self.corpus)
        if values.get("positions") == "progress":
            values["pace"] = self.train.pace
        if values.get("positions") == "aligned":
            rows = self.train.usable
            some = self.train.pairs(rows[:: -(-len(rows) // ENOUGH)])
            self.train.aligner = Aligner(some, self.spell.num_ids, sizes[0])
        lm = LearnableLM(build_config(LearnableLMConfig, values, "model"))
        if backbone["vocab_size"] < self.spell.num_ids:
            raise ConfigError(
                f"model.backbone.vocab_size = {backbone['vocab_size']}: {self.spell.num_ids} ids of the front end "
                f"{config.model['front_end']!r} are needed"
            )
        if config.init:
            lm.warm_start(config.init)
        self.reference: LMLearner | None = None
        if config.preference.reference:
            self.reference = LMLearner(LearnableLM.from_pretrained(config.preference.reference))
            self.reference.to(self.device).eval().requires_grad_(False)
        return LMLearner(lm)

    def load_data(self) -> None:
        self.references = self._references(self.corpus.clips)
        data = self.config.data
        if data.valid:
            held_out = open_texts(data, data.valid, data.valid_split, self.device)
            check_same_codec(data, self.corpus.facts, held_out.facts)
            self.valid = self._batches(held_out)
            self.valid.aligner = self.train.aligner
            self.valid_references = self._references(held_out.clips)

    def _batches(self, corpus: SpokenTexts) -> TextBatches:
        return TextBatches(corpus, self._ids, self.config.data, self.config.seed)

    def _ids(self, text: str) -> list[int]:
        return self.spell.both("", text) if self.spell.symbols(text) else []

    def _references(self, clips: Sequence[Clip]) -> References:
        return References(clips, pcm_rows(self.config.data, clips, REFERENCE_RATE))

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        batch = self.batch(number)
        draws = self.row_draws(number, len(batch.rows))
        if self.pairs is not None:
            return self._preference(batch, draws, self.pairs)
        voices = self._voices(self.references, batch, draws, self.config.bistream, self.config.token_dropout)
        with self.accelerator.autocast():
            logits, target, durations = self.module(batch.to(self.device), voices.to(self.device))
        loss = self._loss(logits, target, len(batch.rows))
        values = {"loss": loss, "accuracy": accuracy(logits, target)}
        if durations is None:
            return loss, values
        return loss + durations, values | {"durations": durations}

    def _loss(self, logits: Tensor, target: Tensor, rows: int) -> Tensor:
        loss = label_loss(logits, target, smoothing=self.config.smoothing)
        return loss if self.config.length_normalised else loss * (target != IGNORE).sum() / rows

    def _preference(
        self, chosen: TextBatch, draws: Sequence[np.random.Generator], pairs: Pairs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of preference pairs: both answers have the same text, voice and layout, also in the reference model."""
        settings, rows = self.config.preference, len(chosen.rows)
        both = pairs.both(chosen)
        voices = self._voices(self.references, chosen, draws, self.config.bistream)
        voices = _twice(voices, both, self.model.lm.config.mix).to(self.device)
        both = both.to(self.device)
        with self.accelerator.autocast():
            logits, target, _ = self.module(both, voices, True)
        counts = (target != IGNORE).sum(1) if settings.per_token else 1
        chosen_score, rejected_score = (sum_log_probs(logits, target) / counts).split(rows)
        reference_scores: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.reference is not None:
            with torch.no_grad():
                reference_score = sum_log_probs(*self.reference(both, voices, True)[:2]) / counts
            reference_scores = reference_score[:rows], reference_score[rows:]
        preference = dpo_loss(chosen_score, rejected_score, *reference_scores, beta=settings.beta)
        loss = self._loss(logits[:rows], target[:rows], rows)
        preferred = (chosen_score > rejected_score).float().mean()
        values = {"preference": preference, "loss": loss, "preferred": preferred}
        return preference + settings.supervised * loss, values

    def _voices(
        self,
        references: References,
        batch: TextBatch,
        draws: Sequence[np.random.Generator],
        bistream: float,
        dropout: float = 0.0,
    ) -> Voices:
        """References, layouts and masks of a batch, by each row's generator."""
        mels, frames, bistreams = [], [], []
        loss_mask = torch.ones(batch.codes.shape[:2], dtype=torch.bool)
        rate = self.corpus.facts.frame_rate
        for place, (row, draw) in enumerate(zip(batch.rows, draws, strict=True)):
            bistreams.append(bool(draw.random() < bistream))
            mel, span = references.draw(row, draw)
            mels.append(torch.zeros(1, 80) if mel is None else mel.T)
            frames.append([0 if mel is None else mel.shape[1]])
            if span is not None and self.pairs is None:  # windows reach a token further
                loss_mask[place, max(0, int(span[0] * rate) - 1) : int(span[1] * rate) + 2] = False
        return Voices(
            mels=pad_sequence(mels, batch_first=True).transpose(1, 2)[:, None],
            lengths=torch.tensor(frames),
            bistream=bistreams,
            loss_mask=None if bool(loss_mask.all()) else loss_mask,
            dropout_mask=dropout_mask(batch, dropout, draws),
        )

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """On held-out texts, at most 24 batches of all lengths: nats per token, perplexity and token accuracy with
        the whole text first; nats where it alternates with speech (bistream), with another utterance's text, and of
        the unigram of the training data."""
        learner = LMLearner(self.final_model())
        kinds = ["nats", "nats_bistream", "nats_other_text"]
        if self.train.aligner is not None:  # text and speech do not alternate
            kinds.remove("nats_bistream")
        totals = {name: torch.zeros(3) for name in (*kinds, "nats_unigram")}
        shares = self.train.unigram()
        for batch in self.valid.fixed():
            for name in kinds:
                draws = [np.random.default_rng((0, row)) for row in batch.rows]  # the same each time
                voices = self._voices(self.valid_references, batch, draws, float(name == "nats_bistream"))
                inputs = batch.swapped() if name == "nats_other_text" else batch
                logits, target, _ = learner(inputs.to(self.device), voices.to(self.device))
                count, right = len(target), float(accuracy(logits, target))
                totals[name] += torch.tensor([float(label_loss(logits, target)), right, 1.0]) * count
                if name == "nats":
                    totals["nats_unigram"] += torch.tensor([-float(shares[target.cpu()].sum()), 0, count])
        mean = {name: float(total[0] / total[2]) for name, total in totals.items()}
        return {
            **{f"valid/{name}": value for name, value in mean.items()},
            "valid/perplexity": float(np.exp(mean["nats"])),
            "valid/accuracy": float(totals["nats"][1] / totals["nats"][2]),
        }


def _twice(voices: Voices, both: TextBatch, mix: tuple[int, int]) -> Voices:
    """Voices of the chosen and rejected answers; they alternate where both can."""
    rows = len(voices.bistream)
    able = [
        alternates(text, speech, mix)
        for text, speech in zip(both.text_lengths.tolist(), both.lengths.tolist(), strict=True)
    ]
    bistream = [drawn and able[i] and able[i + rows] for i, drawn in enumerate(voices.bistream)]
    return Voices(voices.mels.repeat(2, 1, 1, 1), voices.lengths.repeat(2, 1), bistream * 2, None, None)
