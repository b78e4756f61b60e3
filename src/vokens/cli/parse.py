"""Parsing of a verb's `Arguments`, and its help, by tyro."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

_SHOWN = {str: "TEXT", int: "N", float: "X", Path: "PATH"}  # metavars of optional values
_registry = ConstructorRegistry()


def parse(name: str, verb: Any, words: Sequence[str]) -> Any:
    """The arguments of a verb's module. Raises SystemExit after --help and, with code 2, after an error."""
    with _registry:
        return tyro.cli(
            verb.Arguments,
            prog=f"vokens {name}",
            description=re.sub(
                r"(?:\n| {4,})(?=vokens )", "\n\n", verb.__doc__
            ),  # tyro joins lines, not paragraphs
            args=list(words),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )


@_registry.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Optional values without tyro's {None}|STR, which accepts the word None."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if NoneType not in get_args(info.type) or len(kinds) != 1 or kinds[0] not in _SHOWN:
        return None
    kind = kinds[0]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=_SHOWN[kind],
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )
