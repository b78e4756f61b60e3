"""USLM, the language model on SpeechTokenizer's tokens: text to speech in a prompted voice."""

from vokens.models.uslm.config import USLMConfig
from vokens.models.uslm.model import USLM
from vokens.nn.sampling import Sampling  # deprecated: vokens.lm.SamplingParams

__all__ = ["USLM", "Sampling", "USLMConfig"]
