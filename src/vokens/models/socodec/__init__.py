"""SoCodec: four ordered streams of semantic tokens at 8.3 Hz, and one vector for the voice (arXiv 2409.00933)."""

from vokens.models.socodec.config import SoCodecConfig
from vokens.models.socodec.model import SoCodec

__all__ = ["SoCodec", "SoCodecConfig"]
