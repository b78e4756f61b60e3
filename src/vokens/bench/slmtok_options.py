"""What `vokens bench slmtok` is asked to do; without torch, so that help answers at once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from vokens.bench.options import Measure, at_least
from vokens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SlmTok(Measure):
    """SLMTokBench: what text the tokens carry, and what is left of text and voice in the resynthesis.

    Transcribed recordings alone are used; --split is test and --language en, if not given.
    """

    codebooks: str = "1,all"
    """Rows of a tokenizer: N for the first N codebooks, A-B for a range (3-3 for one alone), all."""
    train_split: str = "train"
    """Lines of the manifest that the probe is trained on."""
    train_hours: float = 1.0
    """Of them, so many hours, evenly spaced in the order of their ids."""
    probe_steps: int = 1500
    """Updates of the probe; 0 leaves it out, and with it mutual information."""
    probe_seconds: float = 20.0
    """Of speech in a batch of the probe."""
    probe_width: int = 128
    """Of the probe's LSTM in each direction (the paper's: 1024)."""
    pairs: int = 16
    """Texts that each recording is paired with to estimate mutual information from above."""
    resynthesised: int = 300
    """Recordings of the resynthesis, evenly spaced; 0 leaves it out."""
    recogniser: str = "moonshine-tiny-en"
    """The ASR model: moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID, wav2vec2:ID (hub id or folder)."""
    speaker: str = "campplus-zh-en"
    """Whose voice it is: campplus-zh-en or wavlm:ID."""
    judges: Path | None = None
    """Folder of the evaluator models (default: $VOKENS_EVAL_MODELS, then ~/.cache/vokens-eval)."""

    def __post_init__(self) -> None:
        for name in ("train_hours", "probe_seconds", "probe_width", "pairs"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give more than 0")
        super().__post_init__()
        at_least(0, probe_steps=self.probe_steps, resynthesised=self.resynthesised)
        if not self.probe_steps and not self.resynthesised:
            raise ConfigError(
                "--probe-steps 0 and --resynthesised 0 leave nothing to measure: give one of them"
            )

    def measured(self) -> Self:
        """With the filters of the recordings that are measured."""
        return replace(self, split=self.split or "test", language=self.language or "en", with_text=True)

    def trained_on(self) -> Self:
        """With the filters of the recordings that the probe is trained on, of all hours."""
        return replace(self.measured(), split=self.train_split, limit=None)
