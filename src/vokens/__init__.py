"""vokens: speech to discrete tokens to speech.

>>> import vokens
>>> codec = vokens.load("mini")
>>> tokens = codec.encode("hello.wav")
>>> waves = codec.decode(tokens)

Names are imported when first used, so that `import vokens` does not load torch; `__init__.pyi` has their types.
"""

from importlib import import_module
from typing import Any

from vokens._version import __version__

_HOME = {
    "load": "vokens.models.pretrained",
    "load_voice": "vokens.models.speaking",
    "Codec": "vokens.models.codec",
    "Tokens": "vokens.tokens",
}
_HOME |= dict.fromkeys(("HiFTNetConfig", "HiFTNetModel", "S3GenConfig", "S3GenModel"), "vokens.models.s3gen")
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vokens' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
