"""`create_data_list`: a folder's index and its `data.list`, the input of `train`.

With --split, `data.list` names the training part, and `train.list`, `val.list` and `test.list` one part each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vokens.atomic import atomic_write
from vokens.compat.learnable_speech.index import write_index


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="create_data_list", description=__doc__)
    add = parser.add_argument
    add("--src_dir", required=True, help="folder with recordings and their extracted files")
    add("--output_dir", required=True, help="folder for train_index.json and data.list")
    add("--split", nargs=3, type=float, metavar=("TRAIN", "VAL", "TEST"), help="shares, e.g. 0.9 0.05 0.05")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    indexes = write_index([arguments.src_dir], folder / "train_index.json", arguments.split)
    lists = {f"{name}.list": index for name, index in indexes.items() if name}
    for name, index in {"data.list": indexes.get("train", indexes[""]), **lists}.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(f"{index}\n", encoding="utf-8")
        print(f"{folder / name}: {index.name}")
    return 0
