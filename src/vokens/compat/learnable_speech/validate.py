"""`validate_data`: reads every file that training will read, and reports errors.

The published script expects an older layout; this one expects that of today's training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vokens import audio
from vokens.errors import ConfigError, VokensError
from vokens.train.published_files import (
    TOKEN_RATE,
    Item,
    beside,
    read_latents,
    read_text,
    read_tokens,
    recordings,
)

SLACK = 2  # tolerance between ids and audio in tokens, for frames at the borders
SHOWN = 20


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="validate_data", description=__doc__)
    source = "folder, or a text file with a recording in each line"
    parser.add_argument("--src_dir", required=True, help=source)
    arguments = parser.parse_args(argv)
    waves = recordings(Path(arguments.src_dir))
    if not waves:
        raise ConfigError(f"--src_dir {arguments.src_dir} holds no recording")
    sound, wrong = [], []
    for wave in waves:
        try:
            sound.append(check(beside(wave)))
        except (VokensError, OSError) as error:
            wrong.append(f"{wave}: {error}")
    for line in wrong[:SHOWN]:
        print(line, file=sys.stderr)
    if len(wrong) > SHOWN:
        print(f"... and {len(wrong) - SHOWN} more", file=sys.stderr)
    hours = sum(seconds for seconds, _, _ in sound) / 3600
    widths, ratios = sorted({width for _, width, _ in sound}), sorted({ratio for _, _, ratio in sound})
    counts = f"{len(sound)} of {len(waves)} recordings can be trained on: {hours:.2f} h"
    print(f"{counts}, latent dim {widths}, {ratios} latents per token")
    if len(widths) > 1 or len(ratios) > 1:
        print("latents of several models are mixed: training needs those of one", file=sys.stderr)
        return 1
    return int(bool(wrong))


def check(item: Item) -> tuple[float, int, int]:
    """Seconds, latent dim and latents per token of an utterance. Raises VokensError for its first error."""
    if item.missing:
        raise ConfigError(f"{item.missing[0].name} is missing or empty")
    if not read_text(item.text_path):
        raise ConfigError(f"{item.text_path.name} has no text")
    seconds = audio.duration(item.wav)
    tokens = len(read_tokens(item.token_path))
    latents = read_latents(item.latent_path)[0]
    if abs(tokens - seconds * TOKEN_RATE) > SLACK:
        raise ConfigError(f"{tokens} ids to {seconds:.2f} s of audio: {seconds * TOKEN_RATE:.0f} expected")
    ratio = max(1, round(len(latents) / tokens))
    if abs(len(latents) - ratio * tokens) > SLACK * ratio:
        raise ConfigError(f"{len(latents)} latents to {tokens} ids: a multiple is expected")
    return seconds, latents.shape[1], ratio
