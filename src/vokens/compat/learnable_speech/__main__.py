"""`python -m vokens.compat.learnable_speech COMMAND`: data preparation and training by Learnable-Speech's flags.

Each command is one published script.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from vokens.cli import exit_code

HERE, TOKENIZER = "vokens.compat.learnable_speech", "vokens.compat.s3tokenizer.__main__"
# command -> (module, its function of argv, help)
COMMANDS = {
    "extract_fsq": (TOKENIZER, "main", "ids of recordings, as X_fsq.pt next to them"),
    "extract_dac_latents": (f"{HERE}.latents", "main", "latents, as X_latent2x.pt next to them"),
    "generate_json_index": (f"{HERE}.index", "main", "train_index.json of utterances with all files"),
    "create_data_list": (f"{HERE}.index", "data_list", "data.list with its index"),
    "validate_data": (f"{HERE}.validate", "main", "check the files below a folder"),
    "train": (f"{HERE}.train", "main", "the language model (llm) or the flow (flow)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 some files failed or are wrong, 2 nothing done, 130 training was stopped and saved."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        lines = [f"  {name:20} {what}" for name, (_, _, what) in COMMANDS.items()]
        helped = words[:1] in (["-h"], ["--help"])
        print(f"python -m {HERE} COMMAND", *lines, sep="\n", file=sys.stdout if helped else sys.stderr)
        return 0 if helped else 2
    command, *flags = words
    module, function, _ = COMMANDS[command]
    return exit_code(command, lambda: getattr(import_module(module), function)(flags))


if __name__ == "__main__":
    sys.exit(main())
