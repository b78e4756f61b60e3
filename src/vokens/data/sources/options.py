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

    # Keep utterances that carry exactly this label. In folders of parquet and in Hugging Face datasets, `split` chooses
    # the files that are named by it.
    split: str | None = None
    language: str | None = None
    with_text: bool = False  # keep utterances that have a text
    # Kaldi's files (speakers is utt2spk, instruct CosyVoice's) for a wav.scp; in a Kaldi folder they are found.
    segments: Path | None = None
    text: Path | None = None
    speakers: Path | None = None
    instruct: Path | None = None
    column: str | None = None  # of parquet and Hugging Face data that holds the audio
    # The field or column that names utterances; "row" names the rows of a table by file and number, "name" those of a
    # tar by their names up to the last dot, not the first.
    key: str | None = None

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
