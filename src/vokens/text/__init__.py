"""Text before it is spoken: numbers and abbreviations as words, sentences, and front ends that make ids of it."""

from vokens.text.front_end import FrontEnd, front_end
from vokens.text.normalise import normalise
from vokens.text.sentences import sentences

__all__ = ["FrontEnd", "front_end", "normalise", "sentences"]
