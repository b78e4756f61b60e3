"""Atomic file writes: write to a temporary name next to the target, then rename.

The temporary name keeps the target's suffix (encoders choose their format by it), is unique, so that two
processes may write the same target at once, and begins with a dot, so that globs do not see half a file.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it becomes `path` when the block ends without error.

    After an error (also an interrupt) the temporary file is removed and an older `path` is left as it was.
    """
    target = Path(path)
    start = target.stem[:40]  # the longest names that a system takes must not grow
    temporary = target.with_name(f".{start}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # from the umask; some writers (safetensors) would leave 0600
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
