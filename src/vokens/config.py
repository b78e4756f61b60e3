"""Frozen config dataclasses from plain values, such as those of a config.json or a TOML recipe."""

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vokens.errors import ConfigError


def build_config(config_type: type, values: Mapping[str, Any], where: str) -> Any:
    """A config dataclass, and those in it, from nested tables; lists become tuples.

    A type's `retired` are settings that it had, each with the one value under which everything is as it was: they are
    left out.

    Raises ConfigError naming the setting that is unknown or of the wrong type; `where` names the file.
    """
    for name, usual in getattr(config_type, "retired", {}).items():
        if values.get(name, usual) != usual:
            raise ConfigError(
                f"{where}: {name} = {values[name]!r} is no longer built: {usual!r} is accepted; leave it out"
            )
        values = {key: value for key, value in values.items() if key != name}
    hints = get_type_hints(config_type)
    known = {field.name for field in dataclasses.fields(config_type)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown settings {unknown}; {config_type.__name__} has {sorted(known)}")
    return config_type(**{name: _typed(hints[name], v, f"{where}: {name}") for name, v in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    choices = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if isinstance(value, Mapping):
        for choice in choices:
            if dataclasses.is_dataclass(choice) and isinstance(choice, type):
                return build_config(choice, value, where)
    kinds = tuple(get_origin(choice) or choice for choice in choices)
    if isinstance(value, list) and list not in kinds:
        value = tuple(value)
    if all(isinstance(kind, type) for kind in kinds):  # Any and Literal are left to the config itself
        fits = isinstance(value, kinds) or (float in kinds and type(value) is int)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{where} = {value!r}: {hint} is expected")
    return dict(value) if isinstance(value, Mapping) else value
