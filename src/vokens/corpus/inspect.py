"""Verification of an output folder: shards complete, bytes unchanged, keys unique, and samples that encode to the same
codes again.

Shards are read one by one, so a folder of any size is inspected in the memory of one shard.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vokens.corpus.decode import decode
from vokens.corpus.health import divergence
from vokens.corpus.run import Plan, Receipt, receipt_path, sha256
from vokens.data.dataset import read_run
from vokens.data.items import Row, Source
from vokens.data.sources import SourceOptions, open_source
from vokens.errors import ConfigError, VokensError
from vokens.models.codec import Codec
from vokens.registry import other_weights

_MOST = 20  # faults that are listed in full


@dataclass
class Findings:
    """Result of an inspection."""

    shards: int = 0  # planned
    done: int = 0  # with a receipt; the next five are of those
    utterances: int = 0
    failures: int = 0
    frames: int = 0
    seconds: float = 0.0
    bytes: int = 0
    compared: int = 0  # utterances that were encoded again
    equal: int = 0  # those of them with the same codes
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)  # the first 20
    sizes: dict[int, int] = field(default_factory=dict)  # utterances of each shard done
    health: dict[int, dict[str, Any]] = field(default_factory=dict)  # of each shard done
    durations: list[float] = field(default_factory=list)  # seconds of each row, at most a million

    def fault(self, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _MOST:
            self.faults.append(text)

    @property
    def drift(self) -> dict[int, float]:
        """Divergence in bits of each shard's first codebook from all other shards."""
        known = {shard: health for shard, health in self.health.items() if health["entropy"]}
        counts = {shard: np.array(health["histogram"][0]) for shard, health in known.items()}
        total = sum(counts.values(), np.zeros(1, np.int64))
        return {
            shard: divergence(own, total - own)
            for shard, own in counts.items()
            if own.sum() and (total - own).sum()
        }

    @property
    def entropies(self) -> list[float]:
        """Mean over shards of the bits per token of each codebook."""
        rows = [facts["entropy"] for facts in self.health.values()]
        return np.mean(rows, axis=0).tolist() if rows else []


class Inspection:
    """The output of `vokens extract`, finished or not, opened for inspection. Raises ConfigError for other folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output, self.facts = read_run(folder)
        self.identity: dict[str, Any] = json.loads((folder / "run.json").read_text())
        if not (folder / "plan.jsonl").exists():
            raise ConfigError(f"{folder} has no plan: run vokens extract to make or repair it")
        self.plan = Plan(folder / "plan.jsonl")
        self.source = self._open_source()

    def _open_source(self) -> Source | None:
        """The source of the run; None where it no longer exists."""
        listing, options = self.folder / "listing", SourceOptions(**self.identity.get("options", {}))
        try:
            return open_source(self.identity["source"], listing=listing, options=options)
        except (VokensError, OSError):
            return None

    def check(self, findings: Findings) -> Iterator[int]:
        """Check shard by shard, collecting findings; yields the number of each."""
        findings.shards = len(self.plan)
        for shard in range(len(self.plan)):
            try:
                self._shard(shard, findings)
            except (VokensError, OSError, KeyError) as error:
                findings.fault(f"shard {shard}: {' '.join(str(error).split())}; {self._remedy(shard)}")
            yield shard
        self._summary(findings)

    def _shard(self, shard: int, findings: Findings) -> None:
        path = receipt_path(self.folder, shard)
        if not path.exists():
            findings.fault(f"shard {shard} has no receipt: the run is unfinished, its command resumes it")
            return
        receipt = Receipt.read(path)
        findings.done += 1
        findings.utterances += receipt.utterances
        findings.failures += receipt.failures
        findings.frames += receipt.frames
        findings.seconds += receipt.samples / self.facts.sample_rate
        findings.sizes[shard], findings.health[shard] = receipt.utterances, receipt.health
        planned = int(self.plan.counts[shard])
        if receipt.utterances + receipt.failures != planned:
            findings.fault(
                f"shard {shard}: {receipt.utterances} utterances and {receipt.failures} failures of {planned} planned"
            )
        if self._files(shard, receipt, findings):
            self._rows(shard, receipt, findings)

    def _remedy(self, shard: int) -> str:
        return f"remove {receipt_path(self.folder, shard)} and run the same extraction again"

    def _files(self, shard: int, receipt: Receipt, findings: Findings) -> bool:
        """Check sizes and checksums; return True if all are as written."""
        whole = True
        for file in receipt.files:
            path = self.folder / file["path"]
            if not path.exists():
                findings.fault(f"shard {shard}: {path} is missing; {self._remedy(shard)}")
            elif path.stat().st_size != file["bytes"] or sha256(path) != file["sha256"]:
                findings.fault(f"shard {shard}: {path} changed after it was written; {self._remedy(shard)}")
            else:
                findings.bytes += file["bytes"]
                continue
            whole = False
        return whole

    def _rows(self, shard: int, receipt: Receipt, findings: Findings) -> None:
        """Check that every key of the plan is in the shard or in quarantine, once."""
        keys: Counter[str] = Counter()
        frames = 0
        for row in self.rows(receipt):
            keys[row.key] += 1
            frames += row.codes.shape[1]
            if len(findings.durations) < 1_000_000:
                findings.durations.append(row.duration)
        if frames != receipt.frames:
            findings.fault(f"shard {shard} holds {frames} frames, its receipt says {receipt.frames}")
        quarantine = self.folder / "failures" / f"{shard:06d}.jsonl"
        for line in quarantine.read_text().splitlines() if quarantine.exists() else ():
            keys[json.loads(line)["key"]] += 1
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            findings.fault(f"shard {shard} holds {twice[0]!r} {keys[twice[0]]} times")
        if self.source is not None:
            expected = {utterance.key for utterance in self.source.read(self.plan[shard])}
            for what, odd in (("lacks", expected - keys.keys()), ("has besides", keys.keys() - expected)):
                if odd:
                    findings.fault(f"shard {shard} {what} {sorted(odd)[0]!r} and {len(odd) - 1} more")

    def rows(self, receipt: Receipt) -> Iterator[Row]:
        """The stored rows of a shard."""
        files = [Path(file["path"]) for file in receipt.files if not file["path"].startswith("failures/")]
        return iter(self.output.open(self.folder, files[-1], self.facts))

    def _summary(self, findings: Findings) -> None:
        path = self.folder / "summary.json"
        if findings.done < findings.shards or not path.exists():
            return
        summary = json.loads(path.read_text())
        for name in ("utterances", "failures", "frames"):
            if summary[name] != (counted := getattr(findings, name)):
                findings.fault(f"summary.json says {summary[name]} {name}, the receipts {counted}")

    def compare(self, codec: Codec, findings: Findings, count: int, seed: int = 0) -> None:
        """Encode `count` utterances again, drawn from all finished shards, and compare codes.

        Raises ConfigError for a codec of other weights than the run's, and without its source.
        """
        if codec.fingerprint != self.facts.fingerprint:
            raise ConfigError(
                f"the folder was made by {other_weights(self.facts.model, self.facts.fingerprint)} (fingerprint "
                f"{self.facts.fingerprint}), the codec given has {codec.fingerprint}: give the one that made it with "
                "--model"
            )
        if self.source is None:
            raise ConfigError(f"the source {self.identity['source']} is missing: --sample 0 compares none")
        draw, books = np.random.default_rng(seed), len(self.facts.codebook_sizes)
        done = [shard for shard in range(len(self.plan)) if receipt_path(self.folder, shard).exists()]
        chosen = Counter(draw.choice(done, count).tolist()) if done else Counter()
        for shard, count in sorted(chosen.items()):
            try:
                receipt = Receipt.read(receipt_path(self.folder, shard))
                stored = {row.key: row.codes for row in self.rows(receipt)}
            except VokensError:  # reported by `check`
                continue
            utterances = [u for u in self.source.read(self.plan[shard]) if u.key in stored]
            if not utterances:
                continue
            places = draw.choice(len(utterances), min(count, len(utterances)), replace=False)
            for utterance in (utterances[place] for place in sorted(places)):
                sinc = bool(self.identity.get("sinc"))  # as in the run
                decoded = decode(replace(utterance, sinc=sinc), codec.sample_rate)
                findings.compared += 1
                if decoded.wave is None:
                    findings.fault(f"{utterance.key!r} was encoded and cannot be read now: {decoded.reason}")
                    continue
                tokens = codec.encode(decoded.wave, codec.sample_rate, num_codebooks=books)
                if np.array_equal(tokens.codes[0].numpy(), stored[utterance.key]):
                    findings.equal += 1
                else:
                    findings.fault(f"{utterance.key!r} of shard {shard} has other codes now: changed audio?")
