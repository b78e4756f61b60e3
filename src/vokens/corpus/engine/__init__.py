"""Engines: schedulers of `encode_shard` over processes and machines."""
