"""The shards of a source, and the proof that no two utterances share a key.

The trick: of each key 64 bits are kept, in one array. Only where two are equal is the source planned a second time,
to see whether the keys are: two of ten million different keys share 64 bits once in 370,000 runs.
"""

from collections.abc import Iterator

import numpy as np

from vokens.data.items import Source, Span
from vokens.errors import ConfigError


def plan_shards(source: Source, size: int) -> Iterator[Span]:
    """Spans of at most `size` utterances, in order. Memory: 8 bytes per utterance, 16 while they grow or are sorted.

    Raises ConfigError, naming the key and where it is, for an empty key at once, and for a key of two utterances or
    an empty source after the last span: take all spans before the first work.
    """
    if size < 1:
        raise ConfigError(f"a shard holds 1 utterance or more, got {size}")
    hashes, count = np.empty(1 << 16, np.int64), 0
    for span, keys in source.plan(size):
        if "" in keys:
            raise ConfigError(
                f"{span.where}: utterance {keys.index('')} from position {span.offset} has an empty key"
            )
        if count + len(keys) > len(hashes):
            hashes.resize(max(2 * len(hashes), count + len(keys)), refcheck=False)
        hashes[count : count + len(keys)] = [hash(key) for key in keys]
        count += len(keys)
        yield span
    if count == 0:
        raise ConfigError(
            "the source has no utterances: check its address, and widen the filters if there are any"
        )
    hashes.resize(count, refcheck=False)
    hashes.sort()
    twice = hashes[1:][hashes[1:] == hashes[:-1]]
    if len(twice):
        _refuse_twice(source, size, set(twice.tolist()))


def _refuse_twice(source: Source, size: int, suspects: set[int]) -> None:
    """Raise for the first key of two utterances among those with these hashes; there may be none."""
    seen: dict[str, Span] = {}
    for span, keys in source.plan(size):
        for key in keys:
            if hash(key) in suspects:
                if key in seen:
                    first = seen[key]
                    raise ConfigError(
                        f"key {key!r} names two utterances: one in {first.where} among the {first.count} from "
                        f"position {first.offset}, one in {span.where} among the {span.count} from position "
                        f"{span.offset}; keys have to differ, since tokens are found by them: rename one, or "
                        "choose another field that names utterances (key)"
                    )
                seen[key] = span
