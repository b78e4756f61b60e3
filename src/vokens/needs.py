"""Programs and packages that some systems need in addition to their files."""

import shutil
from importlib.util import find_spec

from vokens.errors import MissingExtra, NotInstalled

_PROGRAMS = ("c2enc", "c2dec")
_PACKAGES = {
    "lyra": ("ai_edge_litert", "ai-edge-litert", "eval", "Lyra"),
    "opus": ("av", "av", "media", "Opus"),
} | {
    system: ("transformers", "transformers", "hf", "This tokenizer")
    for system in ("encodec", "dac", "mimi", "xcodec", "xcodec2", "neucodec", "higgs_audio_v2_tokenizer")
}


def lacking(system: str) -> str:
    """Missing dependencies of a system, in one sentence with the remedy; "" where there are none."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if system == "codec2" and missing:
        return f"Codec2 needs the program {missing[0]}: apt-get install codec2"
    module, *needed = _PACKAGES.get(system, ("",))
    return str(MissingExtra(*needed)) if needed and find_spec(module) is None else ""


def check(system: str) -> None:
    """Raise NotInstalled where a dependency is missing."""
    if sentence := lacking(system):
        raise NotInstalled(sentence)
