"""What `vokens bench report` is asked to do; without torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vokens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Report:
    """One page of the results in a folder: tables, plots, spectrograms and players, in a file without others."""

    folder: Positional[Path]
    """Where `vokens bench` wrote its results."""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """The page; .csv, .md and .json go beside it. Default: report.html in the folder."""
    samples: int = 2
    """Recordings that can be heard, through every codec; 0 for none, then nothing is decoded."""
    seconds: float = 6.0
    """Most seconds of each."""
    title: str = "Speech tokenizers, measured"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if self.samples < 0 or not 0 < self.seconds <= 60:
            raise ConfigError(
                f"samples={self.samples}, seconds={self.seconds} were given: 0 or more, and above 0 to 60"
            )
