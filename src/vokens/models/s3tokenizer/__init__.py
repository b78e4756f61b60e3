"""S3Tokenizer: semantic tokens at 25 or 50 Hz, the speech side of CosyVoice's language models."""

from vokens.models.s3tokenizer.config import RELEASES, S3TokenizerConfig
from vokens.models.s3tokenizer.model import S3Tokenizer

__all__ = ["RELEASES", "S3Tokenizer", "S3TokenizerConfig"]
