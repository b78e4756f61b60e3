"""Text files that people edit: UTF-8 with or without a byte order mark, and errors that name the line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vokens.errors import ConfigError, file_errors

BOM = b"\xef\xbb\xbf"  # Windows puts it before UTF-8 files
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def decode(content: bytes, name: str, line: int = 1) -> str:
    """UTF-8 bytes as text, without a byte order mark. Raises ConfigError that names the line and the byte.

    name: of the bytes, for errors. line: the number of their first line; only line 1 may begin with a mark.
    """
    if line == 1:
        if content.startswith(_UTF16):
            raise ConfigError(f"{name} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        content = content.removeprefix(BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before, wrong = content[: error.start], content[error.start]
        raise ConfigError(
            f"{name}, line {line + before.count(10)}, byte {len(before) - before.rfind(10)}: 0x{wrong:02x} is not "
            "UTF-8; save it as UTF-8 (for example iconv -f LATIN1 -t UTF-8)"
        ) from error


def read_text(path: str | Path) -> str:
    """The content of a file, its line ends as "\\n". Raises ConfigError where it is missing or not UTF-8."""
    with file_errors(ConfigError, f"{path} cannot be read"):
        return _plain_ends(decode(Path(path).read_bytes(), str(path)))


def read_stdin() -> str:
    """All of standard input. Raises ConfigError where it is not UTF-8."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if binary is None else _plain_ends(decode(binary.read(), "standard input"))


def iter_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file without their ends, one at a time. Raises ConfigError as `read_text` does."""
    with file_errors(ConfigError, f"{path} cannot be read"), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield decode(line, str(path), number).rstrip("\r\n")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file without their ends."""
    return list(iter_lines(path))


def read_list(path: str | Path, comment: str | None = "#") -> list[str]:
    """The lines of a list without outer blanks; blank lines and comments are left out."""
    lines = (line.strip() for line in iter_lines(path))
    return [line for line in lines if line and not (comment and line.startswith(comment))]


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises ConfigError that names the line and the column."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); correct it there"
        ) from error


def _plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
