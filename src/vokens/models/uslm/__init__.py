"""USLM, the language model on SpeechTokenizer's tokens: text to speech in a prompted voice."""

from vokens.models.uslm.config import USLMConfig
from vokens.models.uslm.model import USLM
from vokens.models.uslm.sampling import Sampling

__all__ = ["USLM", "Sampling", "USLMConfig"]
