"""One manifest of several: the real and the synthetic speech that the small voice is trained on.

python recipes/say/voice_data.py REAL/manifest.jsonl SYNTHETIC/manifest.jsonl > voice.jsonl

Lines keep their keys; paths become absolute, English texts are written out as `vokens say` writes them out. A manifest
that is still growing is read up to its last whole line.
"""

import json
import sys
from pathlib import Path

from vokens.text.normalise import normalise


def main() -> None:
    for source in map(Path, sys.argv[1:]):
        for line in source.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            record = json.loads(line)
            record.pop(
                "speed", None
            )  # that the voice spoke with; a reader would take it for a change to make
            text = record.get("text")
            if text and record.get("language") == "en":
                record["text"] = normalise(text.lower() if text.isupper() else text)
            print(json.dumps(record | {"path": str((source.parent / record["path"]).resolve())}))


if __name__ == "__main__":
    main()
