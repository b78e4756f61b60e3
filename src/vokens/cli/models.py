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
    """Print the table."""
    from vokens import needs, registry
    from vokens.cli.report import table

    facts = [
        _facts(entry, registry.is_cached(entry), needs.lacking(entry.system)) for entry in registry.entries()
    ]
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    header = ("name", "system", "Hz", "kbit/s", "codebooks", "licence", "MB", "from", "opens")
    rows = [header] + [
        (
            fact["name"],
            fact["system"],
            f"{fact['frame_rate']:g}",
            f"{fact['bitrate'] / 1000:.2f}",
            f"{fact['num_codebooks']} x {fact['codebook_size']}",
            fact["licence"],
            entry.size.removesuffix(" MB"),
            fact["source"],
            f"after {fact['lacks'].partition(': ')[2] or 'a download'}" if not fact["opens"] else "yes",
        )
        for entry, fact in zip(registry.entries(), facts, strict=True)
    ]
    print(table(rows, right=(2, 3, 4, 6)))
    return 0


def _facts(entry: "Entry", cached: bool, lacks: str) -> dict[str, Any]:
    return {
        "name": entry.name,
        "system": entry.system,
        "description": entry.description,
        "sample_rate": entry.sample_rate,
        "frame_rate": entry.frame_rate,
        "num_codebooks": entry.num_codebooks,
        "codebook_size": entry.codebook_size,
        "bitrate": entry.bitrate,
        "licence": entry.licence,
        "size_bytes": entry.size_bytes,
        "source": entry.source,
        "cached": cached,
        "lacks": lacks,
        "opens": cached and not lacks,
    }
