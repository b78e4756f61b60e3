"""Sizes of Learnable-Speech's language model: the speaker encoder, the tokens and their mix, beside Qwen2's."""

from dataclasses import dataclass, field

from vokens.checkpoint import later
from vokens.errors import ConfigError
from vokens.lm.positions import check_positions
from vokens.lm.qwen2 import Qwen2Sizes


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes of the speaker encoder; the defaults are the published ones."""

    n_mels: int = 80  # of the reference's log-mel
    width: int = 512
    layers: int = 6
    heads: int = 8
    embed_dim: int = 192  # of the speaker vector
    # The network as published. It pools frame 0 alone and, without positions, attends to all as a set, padding
    # included. Published weights need it; the default has rotary positions, masks padding, and averages over time.
    published: bool = False

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of twice the heads ({self.heads})")


# release -> the tokenizer whose tokens its published weights make
TOKENS = {"cosyvoice2": "speech_tokenizer_v2_25hz", "cosyvoice3": "speech_tokenizer_v3_25hz"}


@dataclass(frozen=True)
class LearnableLMConfig:
    """Config of the language model."""

    backbone: Qwen2Sizes = field(default_factory=Qwen2Sizes)
    speaker: SpeakerConfig | None = SpeakerConfig()  # None is CosyVoice 2's model, which has no speaker token
    speech_tokens: int = 6561  # codes of the speech tokenizer, 0 ... speech_tokens - 1; other ids follow them
    mix: tuple[int, int] = (5, 15)  # text tokens and speech tokens of a group where they alternate (bistream)
    # Least and most speech tokens of one text token when generating.
    speech_per_text: tuple[float, float] = (2.0, 20.0)
    # How text becomes ids, a name of `vokens.text.front_end`; "" where the caller gives ids.
    front_end: str = ""
    # "sequence", one after another, as published; "progress", speech beside its text at an even pace
    # (`lm.positions`); or "aligned", where the text stands that is said (`learnable.durations`).
    positions: str = "sequence"
    pace: float = 0.0  # mean speech tokens per text id; "progress" needs it
    tokens: str = TOKENS["cosyvoice2"]  # name of the tokenizer of the generated tokens
    # "cosyvoice2", also Learnable-Speech's: three more ids, the end, one that is not used and "give me more text";
    # start and task have a table of their own. "cosyvoice3": 200 more ids, the first four are start, end, task and
    # "give me more text"; the head has no bias.
    release: str = later("cosyvoice2")

    def __post_init__(self) -> None:
        if self.positions != "aligned" or self.pace:
            check_positions(self.positions, self.pace)
        if self.release not in TOKENS:
            raise ConfigError(f"release={self.release!r} was given: {' or '.join(TOKENS)} is accepted")
        if self.speech_tokens < 1 or len(self.mix) != 2 or min(self.mix) < 1:
            raise ConfigError(f"speech_tokens and both numbers of mix must be positive; got {self}")
        if len(self.speech_per_text) != 2 or not 0 <= self.speech_per_text[0] <= self.speech_per_text[1]:
            raise ConfigError(f"speech_per_text is (least, most), got {self.speech_per_text}")

    @property
    def end(self) -> int:
        """The id that ends an utterance."""
        return self.speech_tokens + (0 if self.own_marks else 1)

    @property
    def fill(self) -> int:
        """The id that asks for more text."""
        return self.speech_tokens + (2 if self.own_marks else 3)

    @property
    def outputs(self) -> int:
        """Number of ids that the head predicts."""
        return self.speech_tokens + (3 if self.own_marks else 200)

    @property
    def own_marks(self) -> bool:
        """Whether start and task have a table of their own; else they are rows of the speech tokens'."""
        return self.release == "cosyvoice2"

    @property
    def mark_rows(self) -> list[int]:
        """Rows of start and task in their table."""
        return [0, 1] if self.own_marks else [self.speech_tokens, self.speech_tokens + 2]
