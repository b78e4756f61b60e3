"""mini: the codec embedded in the package."""

from vokens.models.mini.config import MiniConfig
from vokens.models.mini.model import Mini

__all__ = ["Mini", "MiniConfig"]
