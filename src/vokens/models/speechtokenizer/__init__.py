"""SpeechTokenizer: residual codebooks of which the first is semantic (arXiv 2308.16692)."""

from vokens.models.speechtokenizer.config import SpeechTokenizerConfig
from vokens.models.speechtokenizer.model import SpeechTokenizer

__all__ = ["SpeechTokenizer", "SpeechTokenizerConfig"]
