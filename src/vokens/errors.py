"""Exceptions of vokens. Every message says what was given, what is accepted and how to fix it."""

from collections.abc import Iterator
from contextlib import contextmanager


class VokensError(Exception):
    """Base class. Its message is one line, whatever it quotes: YAML's and torch's errors have several."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class AudioError(VokensError, ValueError):
    """Audio that cannot be read or used."""


class TokensError(VokensError, ValueError):
    """Tokens that are malformed, damaged, or belong to another codec."""


class CheckpointError(VokensError, ValueError):
    """Weights that cannot be read, or do not fit the network."""


class ConfigError(VokensError, ValueError):
    """A configuration, recipe or argument that is not accepted."""


class DownloadError(VokensError, OSError):
    """A file that could not be fetched or verified."""


class NotInstalled(VokensError, ImportError):
    """A program, a library or a model's files that are not on this machine; the message says how to get them."""


class MissingExtra(NotInstalled):
    """An optional dependency is needed: the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        from vokens.install import install_line  # not needed until something is missing

        super().__init__(f"{purpose} needs the package {package!r}: {install_line(extra)}")

    def __reduce__(self) -> tuple[type[NotInstalled], tuple[str, ...]]:
        return NotInstalled, self.args  # from another process: the message is whole


@contextmanager
def needs_extra(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Imports of an optional dependency, which raise MissingExtra where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(package, extra, purpose) from error


@contextmanager
def file_errors(kind: type[VokensError], words: str, remedy: str = "") -> Iterator[None]:
    """Give an error of the system as one of ours: the words, the system's reason, the remedy."""
    try:
        yield
    except OSError as error:
        raise kind(f"{words}: {error.strerror or error}{remedy}") from error
