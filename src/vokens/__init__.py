"""vokens: speech to discrete tokens to speech.

>>> import vokens
>>> codec = vokens.load("mini")
>>> tokens = codec.encode("hello.wav")
>>> waves = codec.decode(tokens)

Names are imported when first used, so that `import vokens` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vokens._version import __version__

if TYPE_CHECKING:
    from vokens.models import load
    from vokens.models.codec import Codec
    from vokens.models.s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel
    from vokens.models.speaking import load_voice
    from vokens.tokens import Tokens

__all__ = [
    "Codec",
    "HiFTNetConfig",
    "HiFTNetModel",
    "S3GenConfig",
    "S3GenModel",
    "Tokens",
    "__version__",
    "load",
    "load_voice",
]

_HOME = {
    "load": "vokens.models",
    "load_voice": "vokens.models.speaking",
    "Codec": "vokens.models.codec",
    "Tokens": "vokens.tokens",
}
_HOME |= dict.fromkeys(("HiFTNetConfig", "HiFTNetModel", "S3GenConfig", "S3GenModel"), "vokens.models.s3gen")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vokens' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
