"""Deprecated: `vokens.data.dataset` has these names now."""

from vokens.data.dataset import TokenBatch, TokenBatches, TokenDataset, read_run

__all__ = ["TokenBatch", "TokenBatches", "TokenDataset", "read_run"]
