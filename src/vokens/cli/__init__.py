"""The command line: a table of verbs, and the one place where errors become exit codes.

A verb is a module with `Arguments` (what tyro parses) and `run(arguments) -> int`. Only the chosen one is
imported, and it imports torch inside `run`, so that `--help` is fast.
Exit codes: 0 done, 1 some of many inputs failed, 2 nothing done (with an error), 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from vokens._version import __version__
from vokens.errors import ConfigError, VokensError

VERBS = {  # and their lines in `vokens --help`
    "encode": "speech to tokens: files, folders, globs or stdin",
    "decode": "tokens to speech",
    "speak": "S3 tokens to speech in the voice of a recording",
    "say": "a text to speech: arguments, lines of a file or stdin",
    "convert-voice": "speech in the voice of another recording",
    "convert": "published weights to a folder of ours",
    "roundtrip": "speech to tokens to speech, with numbers and a picture",
    "models": "the codecs that can be loaded by name",
    "extract": "a corpus to shards of tokens, exactly once, on any number of machines",
    "train": "train a codec from a recipe",
    "inspect": "verify what extract wrote, and draw its statistics",
    "bench": "measure codecs against each other",
    "web": "a page in the browser: record, hear and see tokens",
    "serve": "tokens and speech over HTTP, in the shape of OpenAI's endpoint",
    "doctor": "what is installed, what is missing for which verb, and remedies",
    "demo": "encode and decode a real sample, offline",
}

_BROKEN_PIPE, _INTERRUPTED = 141, 130  # 128 + SIGPIPE, 128 + SIGINT, as shells report them


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit code."""
    _share_cores()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]

    def work() -> int:
        run, args = _command(words)
        return run(args)

    try:
        return exit_code("vokens", work, debug)
    except SystemExit as stop:  # tyro has printed its help or its error
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def exit_code(command: str, work: Callable[[], int], debug: bool = False) -> int:
    """The exit code that `work` returns, or that of its error, of which one line goes to standard error."""
    try:
        code = work()
        sys.stdout.flush()  # a closed pipe raises here, not while Python shuts down
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (VokensError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2


def _share_cores() -> None:
    """Make OpenMP's idle threads sleep, before torch loads it, unless the user has set it.

    By default they spin for milliseconds: two processes on two cores took 3.45 s for 20 s of speech instead of 0.95 s;
    a single one on a busy machine 0.94 s instead of 0.44 s (mini, Intel Xeon, libgomp).
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _command(words: list[str]) -> tuple[Callable[[Any], int], Any]:
    if not words or words[0] in ("-h", "--help"):
        return _print_overview, 0 if words else 2
    if words[0] == "--version":
        return _print_version, 0
    name, *rest = words
    if name not in VERBS:
        raise ConfigError(_unknown(name))
    verb = module_of(name)

    from vokens.cli.parse import parse  # tyro takes 0.1 s, not needed for the overview

    return verb.run, parse(name, verb, rest)


def module_of(verb: str) -> Any:
    return import_module(f"vokens.cli.{verb.replace('-', '_')}")


def _print_version(code: int) -> int:
    print(f"vokens {__version__}")
    return code


def _unknown(name: str) -> str:
    near = get_close_matches(name, VERBS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown verb {name!r}: {guess}The verbs are {', '.join(VERBS)} (vokens --help)"


def _print_overview(code: int) -> int:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {line}" for name, line in VERBS.items())
    print(
        f"vokens {__version__}: speech to discrete tokens to speech\n\n"
        f"usage: vokens VERB ... [--debug]\n\n{verbs}\n\n"
        "vokens VERB --help explains one verb, --debug shows the traceback of an error.\n"
        "First steps: vokens demo, then vokens encode hello.wav and vokens decode hello.vok"
    )
    return code
