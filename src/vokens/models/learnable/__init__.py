"""Learnable-Speech's first stage: text to speech tokens, in a voice."""

from vokens.models.learnable.config import LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.learnable.lm import LearnableLM
from vokens.models.learnable.speaker import SpeakerEncoder

__all__ = ["LearnableLM", "LearnableLMConfig", "Qwen2Sizes", "SpeakerConfig", "SpeakerEncoder"]
