"""Verify the output of `vokens extract`, encode samples of it again, and draw its statistics.

Exit code 0 if all is well, 1 if something is wrong.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from vokens.cli.options import Compute, load_codec, unset

if TYPE_CHECKING:
    from vokens.corpus.inspect import Findings
    from vokens.data.items import CodecInfo


@dataclass(frozen=True)
class Arguments:
    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The --out of an extraction, finished or not."""
    sample: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Number of utterances to encode again and compare; 0 loads no codec."""
    model: Annotated[str | None, unset("NAME", "-m")] = None
    """The codec that made the folder (default: from the folder)."""
    picture: Annotated[Path | None, unset("PNG")] = None
    """Draw durations, bits per codebook, the first codebook's histogram and the drift of shards."""
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    from tqdm import tqdm

    from vokens.cli.report import table
    from vokens.corpus.inspect import Findings, Inspection
    from vokens.errors import ConfigError
    from vokens.picture import check_picture, save_figure

    if arguments.picture:
        check_picture(arguments.picture)
    inspection = Inspection(arguments.folder)
    findings = Findings()
    shards = len(inspection.plan)
    for _ in tqdm(inspection.check(findings), "inspecting", shards, disable=not sys.stderr.isatty()):
        pass
    if arguments.sample:
        try:
            codec = load_codec(arguments.model or inspection.facts.model, arguments.compute)
            inspection.compare(codec, findings, arguments.sample)
        except ConfigError as error:
            findings.fault(f"no sample was encoded again: {error}")
    print(table(_facts(inspection.identity["format"], inspection.facts, findings)))
    for text in findings.faults:
        print(f"vokens: {text}", file=sys.stderr)
    if findings.fault_count > len(findings.faults):
        print(f"vokens: and {findings.fault_count - len(findings.faults)} more", file=sys.stderr)
    if arguments.picture:
        from vokens.corpus.picture import statistics_figure

        save_figure(statistics_figure(findings, inspection.facts, arguments.folder.name), arguments.picture)
    return int(findings.fault_count > 0)


def _facts(form: str, facts: "CodecInfo", findings: "Findings") -> list[tuple[str, str]]:
    drift = findings.drift
    most = f"{max(drift.values()):.3f} bits at most between a shard and the others" if len(drift) > 1 else ""
    return [
        (
            "codec",
            f"{facts.model} {facts.fingerprint}, {facts.frame_rate:g} Hz x {len(facts.codebook_sizes)}",
        ),
        ("shards", f"{findings.done} of {findings.shards}"),
        ("utterances", f"{findings.utterances}, and {findings.failures} in quarantine"),
        ("speech", f"{findings.seconds / 3600:.3f} h, {findings.frames} frames"),
        ("files", f"{form}, {findings.bytes / 1e6:.1f} MB, checksums verified"),
        ("entropy", " ".join(f"{bits:.2f}" for bits in findings.entropies) + " bit per token"),
        ("drift", most or "none: one shard has no others to differ from"),
        ("encoded again", f"{findings.equal} of {findings.compared} equal" if findings.compared else "none"),
        ("faults", str(findings.fault_count)),
    ]
