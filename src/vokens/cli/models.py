"""List the codecs that can be loaded by name."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vokens.registry import Entry


@dataclass(frozen=True)
class Arguments:
    json: bool = False
    """One json list instead of the table."""


def run(arguments: Arguments) -> int:
    from vokens import registry
    from vokens.cli.report import table

    facts = [_facts(entry) for entry in registry.entries()]
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    header = ("name", "system", "Hz", "kbit/s", "codebooks", "licence", "MB", "from", "opens")
    rows = [
        (
            *(fact["name"], fact["system"], f"{fact['frame_rate']:g}", f"{fact['bitrate'] / 1000:.2f}"),
            *(f"{fact['num_codebooks']} x {fact['codebook_size']}", fact["licence"]),
            *(entry.size.removesuffix(" MB"), fact["source"]),
            "yes" if fact["opens"] else f"after {fact['lacks'].partition(': ')[2] or 'a download'}",
        )
        for entry, fact in zip(registry.entries(), facts, strict=True)
    ]
    print(table([header, *rows], right=(2, 3, 4, 6)))
    return 0


def _facts(entry: "Entry") -> dict[str, Any]:
    from vokens import needs, registry

    names = ("name", "system", "description", "sample_rate", "frame_rate", "num_codebooks", "codebook_size")
    more = ("bitrate", "licence", "size_bytes", "source")
    cached, lacks = registry.is_cached(entry), needs.lacking(entry.system)
    own = {name: getattr(entry, name) for name in names + more}
    return own | {"cached": cached, "lacks": lacks, "opens": cached and not lacks}
