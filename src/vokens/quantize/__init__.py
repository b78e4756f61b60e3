"""Quantizers: residual (RVQ), product, finite scalar (FSQ) and unit-vector quantization."""

from vokens.quantize.rvq import EuclideanCodebook, Quantized, ResidualVectorQuantizer

__all__ = ["EuclideanCodebook", "Quantized", "ResidualVectorQuantizer"]
