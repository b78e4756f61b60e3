"""Quantizers: residual vector quantization with exponential-moving-average codebooks."""

from vokens.quantize.rvq import EuclideanCodebook, Quantized, ResidualVectorQuantizer

__all__ = ["EuclideanCodebook", "Quantized", "ResidualVectorQuantizer"]
