"""Decoder language models of tokens: networks, KV cache, sampling, decoding."""

from vokens.lm.cache import KVCache
from vokens.lm.decode import decode
from vokens.lm.sampling import SamplingParams

__all__ = ["KVCache", "SamplingParams", "decode"]
