"""Engines only schedule shards: each hands `encode_shard` one after the other and waits for nothing else."""
