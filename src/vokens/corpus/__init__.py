"""Extraction of a speech corpus into shards of tokens: nothing lost, nothing twice."""
