"""Parameters that take one value or a list of them; other types are refused by name."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vokens.errors import VokensError


def one_or_list(
    given: Any, is_one: Callable[[Any], bool], accepted: str, error: type[VokensError]
) -> list[Any]:
    """`given` as a list: one value, or the items of a list, tuple, generator or column of a table.

    accepted: description of the accepted types, for the message. Raises `error` for other types and for an empty list.
    """
    if is_one(given):
        return [given]
    texts = isinstance(given, str | bytes | bytearray | Mapping)
    if texts or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise error(f"{type_name(given)} was given: {accepted}, or a list of those is accepted")
    items = list(given)
    if not items:
        raise error("an empty list was given: give at least one item")
    for number, item in enumerate(items):
        if not is_one(item):
            raise error(f"item {number} of the list is {type_name(item)}: {accepted} is accepted")
    return items


def type_name(given: Any) -> str:
    """The type of a value for messages, with the keys of a dict: 'a dict of array, text'."""
    name = type(given).__name__
    if isinstance(given, Mapping):
        return f"a {name} of {', '.join(map(str, given)) or 'nothing'}"
    return "None" if given is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
