"""Frozen config dataclasses from plain values, such as those of a config.json or a TOML recipe."""

import dataclasses
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vokens.errors import ConfigError


def build_config(config_type: type, values: Mapping[str, Any], where: str) -> Any:
    """A config dataclass, and those in it, from nested tables; lists become tuples.

    A type's `retired` are settings that it had, each with the one value under which everything is as it was: they are
    left out.

    Raises ConfigError naming the setting that is unknown or of the wrong type; `where` names the file.
    """
    for name, usual in getattr(config_type, "retired", {}).items():
        if values.get(name, usual) != usual:
            raise ConfigError(f"{where}: {name} = {values[name]!r} is no longer built: {usual!r} is accepted")
        values = {key: value for key, value in values.items() if key != name}
    hints = get_type_hints(config_type)
    known = {field.name for field in dataclasses.fields(config_type)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown settings {unknown}; {config_type.__name__} has {sorted(known)}")
    return config_type(**{name: _typed(hints[name], v, f"{where}: {name}") for name, v in values.items()})


def check_choices(config: Any) -> None:
    """Raise ConfigError for a Literal field of a config with another value."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            accepted = ", ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{name}={getattr(config, name)!r} was given: {accepted} are accepted")


def check_positive(config: Any, free: Collection[str] = ()) -> None:
    """Raise ConfigError for a number of a config below 1, alone or in a tuple, but in the fields `free`."""
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        small = any(isinstance(n, int | float) and not isinstance(n, bool) and n < 1 for n in numbers)
        if small and name not in free:
            raise ConfigError(f"{name}={value!r} was given: at least 1 is accepted")


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
