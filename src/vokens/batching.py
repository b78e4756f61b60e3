"""Batches of similar lengths."""

from collections.abc import Iterator, Sequence


def batches(lengths: Sequence[int], budget: int, padding: float = 1.0) -> Iterator[list[int]]:
    """Row numbers in groups of similar length whose padded total stays within budget (one row may exceed it).

    padding: the largest allowed share of padding in a group.
    """
    group: list[int] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        padded = (len(group) + 1) * lengths[group[0] if group else row]
        if group and (padded > budget or filled + lengths[row] < (1 - padding) * padded):
            yield group
            group, filled = [], 0
        group.append(row)
        filled += lengths[row]
    if group:
        yield group
