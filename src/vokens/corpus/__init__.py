"""A corpus of speech into shards of tokens: nothing lost, nothing twice."""
