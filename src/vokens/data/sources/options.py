"""Options of a source: selection of utterances, and labels that the file itself lacks."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vokens.data.items import Utterance


class Labels(NamedTuple):
    """Labels of an utterance; None is unknown."""

    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    instruct: str | None = None


def known(value: object) -> str | None:
    """A label as text; None where it is missing or empty."""
    return None if value is None or value == "" else str(value)


@dataclass(frozen=True)
class SourceOptions:
    """Selection of utterances, and files and fields of their labels."""

    split: str | None = None
    """Keep utterances of this split; of a dataset folder, the files named by it."""
    language: str | None = None
    """Keep utterances of this language."""
    with_text: bool = False
    """Keep utterances that have a text."""
    segments: Path | None = None
    """Kaldi's segments file for a wav.scp. In a Kaldi folder, this and the next three are found."""
    text: Path | None = None
    """Kaldi's text file for a wav.scp."""
    speakers: Path | None = None
    """Kaldi's utt2spk for a wav.scp."""
    instruct: Path | None = None
    """CosyVoice's instruct file for a wav.scp."""
    column: str | None = None
    """Column of parquet and dataset folders that holds the audio."""
    key: str | None = None
    """Field or column that names the utterances; row: of tables, by file and row; name: of tars, up to the last dot."""

    @property
    def choosy(self) -> bool:
        """True if some utterances may be left out."""
        return self.split is not None or self.language is not None or self.with_text

    def keeps(self, labels: Labels | Utterance) -> bool:
        """True if an utterance with these labels is kept."""
        return (
            (self.split is None or labels.split == self.split)
            and (self.language is None or labels.language == self.language)
            and not (self.with_text and labels.text is None)
        )
