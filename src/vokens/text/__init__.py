"""Text before it is spoken: front ends that make ids of it."""

from vokens.text.front_end import FrontEnd, front_end

__all__ = ["FrontEnd", "front_end"]
