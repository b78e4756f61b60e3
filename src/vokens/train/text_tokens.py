"""Training data of text to tokens: recordings with texts and the tokens of a codec, and batches of whole utterances.

A source opens as `SpokenTexts`: a manifest, a folder of `vokens extract`, or Learnable-Speech's files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens.data.dataset import RUN_FILE, TokenDataset
from vokens.data.items import CodecInfo
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.train.alignment import Aligner, Pair
from vokens.train.buckets import Buckets
from vokens.train.config import DataConfig
from vokens.train.data import Clip, TensorBatch, read_clips
from vokens.train.flow_data import token_rows
from vokens.train.published_files import TOKEN_RATE, PublishedFiles, is_published

PUBLISHED = CodecInfo("speech_tokenizer_v2_25hz", "", 16000, TOKEN_RATE, (6561,))
SMALLEST_BUCKET = 16  # utterances
VALID_BATCHES = 24


@dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """Utterances with texts and tokens. `train` and `valid` are manifests or folders of recordings, whose tokens are
    computed once and cached, output folders of `vokens extract`, or Learnable-Speech's train_index.json or data.list.
    """

    # Name or folder of the codec that encodes recordings; extracted folders bring theirs, and published files are taken
    # for speech_tokenizer_v2_25hz's where it is empty.
    codec: str = ""
    batch_frames: int = 4000  # padded places (text and tokens) of a batch, per process
    longest: int = 1500  # utterances of more places are left out


@dataclass(frozen=True)
class SpokenTexts:
    """Utterances of a corpus, some of which have a text and tokens."""

    clips: Sequence[Clip]  # recording, text and speaker of each, where they are known
    frames: np.ndarray  # (n,) how many tokens each has
    facts: CodecInfo  # of the codec
    codes: Callable[[int], np.ndarray]  # the tokens (T, K) of an utterance's number


def open_texts(
    data: TextDataConfig, source: str, split: str | None, device: torch.device, *, with_text: bool = False
) -> SpokenTexts:
    """Open the utterances of a source of any form. with_text: of a manifest, only those that have a text.

    Raises ConfigError where a manifest comes without a codec.
    """
    if (Path(source) / RUN_FILE).is_file():
        dataset = TokenDataset(source)
        labels = [dataset[number] for number in range(len(dataset))]
        clips = [Clip(row.key, Path(row.audio or ""), row.text, row.language, row.speaker) for row in labels]
        return SpokenTexts(clips, dataset.frames, dataset.facts, lambda number: dataset[number].codes.T)
    codec, facts = Codec.from_pretrained(data.codec, device=device) if data.codec else None, PUBLISHED
    if codec is not None:
        sizes = codec.codebook_sizes
        facts = CodecInfo(codec.name, codec.fingerprint, codec.sample_rate, codec.frame_rate, sizes)
    if is_published(source):
        files = PublishedFiles(source)
        clips, rows = files.clips, files.tokens(data, facts.codebook_sizes[0])
    elif codec is None:
        raise ConfigError(f"data.codec is empty: name the codec that is to encode {source}")
    else:
        clips = read_clips(source, split, data.language, with_text=with_text)
        rows = token_rows(data, clips, codec)
    return SpokenTexts(clips, np.diff(rows.offsets), facts, rows.__getitem__)


@dataclass(frozen=True)
class TextBatch(TensorBatch):
    """B utterances."""

    rows: list[int]  # their numbers in the corpus
    text: Tensor  # (B, L) int64 ids, zero beyond text_lengths
    text_lengths: Tensor  # (B,)
    codes: Tensor  # (B, T, K) int64, zero beyond lengths
    lengths: Tensor  # (B,)
    durations: Tensor | None = None  # (B, L) speech tokens of each id, where they are aligned

    def swapped(self) -> "TextBatch":
        """The batch with each text replaced by another row's, to measure how much a model uses the text."""
        durations = None if self.durations is None else self.durations.roll(1, 0)
        text, lengths = self.text.roll(1, 0), self.text_lengths.roll(1)
        return replace(self, text=text, text_lengths=lengths, durations=durations)


def dropout_mask(batch: TextBatch, share: float, draws: Sequence[np.random.Generator]) -> Tensor | None:
    """Input dropout mask (B, T) of tokens, drawn by each row's generator; None where the share is 0."""
    if not share:
        return None
    frames = batch.codes.shape[1]
    return torch.from_numpy(np.stack([draw.random(frames) < share for draw in draws]))


class TextBatches:
    """Batches of the utterances of a corpus that have text and tokens.

    Args:
        spell: text -> ids; utterances without ids, or with a ConfigError, are left out.
        data: its batch_frames and longest; a batch has one utterance at least.

    Attributes:
        usable: numbers of the utterances that are kept. texts: their ids, by number. aligner: of texts and
            tokens; where it is set, batches have durations, each computed once.

    Raises ConfigError where none is left.
    """

    def __init__(
        self, corpus: SpokenTexts, spell: Callable[[str], list[int]], data: TextDataConfig, seed: int
    ) -> None:
        self.corpus = corpus
        spelt = {
            row: _spelt(spell, clip.text)
            for row, clip in enumerate(corpus.clips)
            if clip.text and corpus.frames[row]
        }
        size = {row: len(text) + int(corpus.frames[row]) for row, text in spelt.items()}
        self.texts = {row: text for row, text in spelt.items() if text and size[row] <= data.longest}
        self.usable = sorted(self.texts, key=lambda row: (size[row], row))
        if not self.usable:
            raise ConfigError(
                f"none of {len(corpus.clips)} utterances has a text that can be spelt, tokens, and at most "
                f"data.longest = {data.longest} of both together"
            )
        self.aligner: Aligner | None = None
        self._durations: dict[int, np.ndarray] = {}
        self.buckets = Buckets(
            self.usable, lambda row: data.batch_frames // size[row], smallest=SMALLEST_BUCKET, seed=seed
        )
        self.batches_per_epoch = self.buckets.batches_per_epoch

    def pairs(self, rows: Sequence[int]) -> list[Pair]:
        """Text ids and first-codebook tokens of utterances."""
        return [(self.texts[row], self.corpus.codes(row)[:, 0]) for row in rows]

    @property
    def pace(self) -> float:
        """Mean tokens per text id over the kept utterances."""
        frames = sum(int(self.corpus.frames[row]) for row in self.usable)
        return frames / sum(len(self.texts[row]) for row in self.usable)

    def batch(self, number: int, rank: int = 0, world: int = 1) -> TextBatch:
        """The batch of a number, counted from the start of the run."""
        return self.collate(self.buckets.rows(number, rank, world).tolist())

    def fixed(self) -> list[TextBatch]:
        """At most VALID_BATCHES batches of all lengths, always the same."""
        rows = self.buckets.fixed()
        return [self.collate(each) for each in rows[:: -(-len(rows) // VALID_BATCHES)]]

    def collate(self, rows: list[int]) -> TextBatch:
        texts = [torch.tensor(self.texts[row]) for row in rows]
        codes = [torch.from_numpy(self.corpus.codes(row).astype(np.int64)) for row in rows]
        return TextBatch(
            rows,
            pad_sequence(texts, batch_first=True),
            torch.tensor([len(text) for text in texts]),
            pad_sequence(codes, batch_first=True),
            torch.tensor([len(code) for code in codes]),
            None if self.aligner is None else self._aligned(rows, self.aligner),
        )

    def _aligned(self, rows: list[int], aligner: Aligner) -> Tensor:
        new = [row for row in rows if row not in self._durations]
        self._durations |= zip(new, aligner.durations(self.pairs(new)), strict=True)
        return pad_sequence([torch.from_numpy(self._durations[row]) for row in rows], batch_first=True)

    def unigram(self) -> Tensor:
        """Log-probabilities (V + 1,) of each token of the first codebook and of the end, from add-one counts."""
        size = self.corpus.facts.codebook_sizes[0]
        counts = torch.ones(size + 1)
        for row in self.usable:
            codes = torch.from_numpy(self.corpus.codes(row)[:, 0].astype(np.int64))
            counts += torch.bincount(codes, minlength=size + 1)
            counts[size] += 1
        return (counts / counts.sum()).log()


def check_same_codec(data: DataConfig, train: CodecInfo, valid: CodecInfo) -> None:
    """Raise ConfigError where held-out tokens are not of the training tokens' codec."""
    if valid.fingerprint != train.fingerprint:
        raise ConfigError(
            f"{data.valid} and {data.train} hold tokens of different codecs: extract both with one"
        )


def _spelt(spell: Callable[[str], list[int]], text: str | None) -> list[int]:
    try:
        return spell(text or "")
    except ConfigError:
        return []
