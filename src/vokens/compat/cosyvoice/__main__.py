"""`python -m vokens.compat.cosyvoice COMMAND`: CosyVoice's data preparation by its own flags.

Each command is one script of its `tools/`. `vokens extract --format cosyvoice` does the work of all
three at once, on any number of devices and machines.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vokens.cli import exit_code
from vokens.compat.cosyvoice.maps import extract_embedding, extract_speech_token
from vokens.compat.cosyvoice.parquet import make_parquet_list

COMMANDS = {
    "extract_speech_token": (extract_speech_token, "utt2speech_token.pt of a folder with wav.scp"),
    "extract_embedding": (extract_embedding, "utt2embedding.pt and spk2embedding.pt, with utt2spk"),
    "make_parquet_list": (make_parquet_list, "data.list and its parquet files, of all these"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some utterances failed, 2 nothing done, 130 interrupted; the same command resumes."""
    arguments = _parser().parse_args(argv)

    def work() -> int:
        failed = COMMANDS[arguments.command][0](arguments)
        for line in failed[:10]:
            print(f"{arguments.command}: {line}", file=sys.stderr)
        if failed:
            print(f"{arguments.command}: {len(failed)} utterances failed and are left out", file=sys.stderr)
        return int(bool(failed))

    return exit_code(arguments.command, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vokens.compat.cosyvoice",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adders = {name: commands.add_parser(name, help=what).add_argument for name, (_, what) in COMMANDS.items()}
    for name in ("extract_speech_token", "extract_embedding"):
        add, weights = adders[name], "the released graph, or weights in any form that opens"
        add("--dir", type=Path, required=True, help="folder with wav.scp; the files are written there")
        add("--onnx_path", type=Path, required=True, help=weights)
        add("--num_thread", type=int, default=8, help="threads of the network, at most one per core (8)")
    add = adders["make_parquet_list"]
    add("--num_utts_per_parquet", type=int, default=1000, help="utterances of a parquet file (1000)")
    add("--num_processes", type=int, default=1, help="parquet files that are written at the same time (1)")
    add("--src_dir", type=Path, required=True, help="folder with wav.scp, text, utt2spk and the .pt files")
    add("--des_dir", type=Path, required=True, help="folder for the parquet files and their lists")
    add("--dpo", action="store_true", help="add tokens of SRC_DIR_reject/utt2speech_token.pt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
