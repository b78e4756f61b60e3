"""Sizes of USLM (SpeechTokenizer, arXiv 2308.16692 §3.3; VALL-E, arXiv 2301.02111), and options of its release."""

from dataclasses import dataclass

from vokens.errors import ConfigError
from vokens.lm.positions import check_positions
from vokens.text.front_end import check_name


@dataclass(frozen=True)
class USLMConfig:
    """Sizes of USLM; the defaults are the released ones, with the faults of the released code fixed."""

    width: int = 1024  # D of both networks
    heads: int = 16  # of each network's transformer, as layers and feedforward
    layers: int = 12
    feedforward: int = 4096
    dropout: float = 0.1
    text_symbols: int = 512  # rows of the text embedding
    codebook_size: int = 1024  # of the tokenizer's codes
    num_codebooks: int = 8
    # How text becomes symbols, a name of `vokens.text.front_end`: "bytes", "characters", "espeak" ...
    front_end: str = "bytes"
    # Input of the NAR network from the prompt. 0: its text, and its codes up to the layer before the predicted one,
    # as those of the rest. 1: its text and all its codes. 2: its codes alone.
    prefix_mode: int = 0
    frames_per_symbol: int = 16  # maximum number of frames per symbol of text
    sample_rate: int = 16000  # of the tokenizer, Hz
    hop_length: int = 320  # its samples per frame
    codec: str = "speechtokenizer"  # its name
    fingerprint: str = ""  # of its weights, where they are known
    # Of the AR network: "sequence", as published; or "progress", speech beside its text (`lm.positions`).
    positions: str = "sequence"
    pace: float = 0.0  # mean number of frames per symbol, for "progress"
    # The length limit counts the prompt's text too, and speech also ends where the end is the most likely next code
    # and another one was sampled. The released weights were evaluated with both.
    published_stop: bool = False
    # No training of the first code, which leaves speech without a prompt undefined, and the end counts as a target
    # again at every padded frame.
    published_targets: bool = False

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"width={self.width} must be a multiple of 2 * heads, {2 * self.heads}")
        if self.num_codebooks < 2:
            raise ConfigError(f"num_codebooks={self.num_codebooks}: 2 or more are accepted, one per network")
        if self.prefix_mode not in (0, 1, 2):
            raise ConfigError(f"prefix_mode={self.prefix_mode} was given: 0, 1 and 2 are accepted")
        check_name(self.front_end)
        check_positions(self.positions, self.pace)

    @property
    def end(self) -> int:
        """The code that ends speech, one past the codebook."""
        return self.codebook_size
