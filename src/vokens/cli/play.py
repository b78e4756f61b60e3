"""Playback of a sound file by an installed program."""

import shutil
import subprocess
import sys
from pathlib import Path

# Players, the first installed one is used; only the last two play all formats that are written here.
PLAYERS = (
    ("afplay",),
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("play", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)
EVERYTHING = ("play", "ffplay")


def play(path: Path) -> bool:
    """Play a file to its end; print a line on standard error where no program can."""
    for program, *options in PLAYERS:
        if shutil.which(program) is None or (path.suffix.lower() != ".wav" and program not in EVERYTHING):
            continue
        done = subprocess.run([program, *options, str(path)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return True
        reason = (done.stderr.strip().splitlines() or ["it ended with an error"])[-1]
        print(f"vokens: {program} does not play: {reason}", file=sys.stderr)
    names = ", ".join(program for program, *_ in PLAYERS)
    print(f"vokens: nothing here plays {path}: install one of {names}, or open the file", file=sys.stderr)
    return False
