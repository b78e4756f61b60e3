"""A field of Lhotse Shar: `shar/codes.000012.tar`, and `shar/cuts.000012.jsonl.gz` with the utterances as cuts.

`CutSet.from_shar(in_dir="OUT/shar")` gives cuts whose `load_codes()` is (T, K): time comes first because lhotse cuts
arrays in memory along their first axis. The subfolder is needed because lhotse takes every other file for a field.
With cuts of a Shar source, `from_shar(fields={"cuts": …, "codes": …})` attaches the codes where no utterance failed.
"""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import NamedFiles, Record, Shard, Written, code_type, dump, to_record
from vokens.data.outputs.tar import Archive, write_samples
from vokens.errors import TokensError


class Shar(NamedFiles):
    """Cuts and codes for lhotse's samplers."""

    pattern = "shar/cuts.*.jsonl.gz"

    def write(self, folder: Path, shard: int, rows: Sequence[Row], facts: CodecInfo) -> list[Written]:
        self.check_all(rows, facts)
        samples = (
            (row.key, row.codes.T.astype(code_type(facts), order="C"), _array(row, facts)) for row in rows
        )
        codes, cuts = Path(f"shar/codes.{shard:06d}.tar"), Path(f"shar/cuts.{shard:06d}.jsonl.gz")
        (folder / "shar").mkdir()
        write_samples(folder / codes, samples, ".npy")
        lines = "".join(dump(_cut(row, facts)) + "\n" for row in rows)
        (folder / cuts).write_bytes(_gzip(lines.encode()))
        return [Written(codes, codes), Written(cuts, cuts)]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        number = file.name.split(".")[1]
        archive = Archive(folder / file.with_name(f"codes.{number}.tar"))
        try:
            lines = gzip.decompress((folder / file).read_bytes()).split(b"\n")
            records = [json.loads(line)["custom"]["vokens"] for line in lines if line]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise TokensError(f"{folder / file} holds no cuts of vokens ({error}), or is damaged") from error
        return Shard(records, lambda i: archive.array(f"{records[i]['key']}.npy").T)


def _array(row: Row, facts: CodecInfo) -> Record:
    """lhotse's TemporalArray. Its frame shift is duration / T and not 1 / frame_rate: `load_codes()` takes
    round(duration / shift) frames, and codecs that round T up would lose their last frame at every second cut."""
    frames = row.codes.shape[1]
    place = {"storage_type": "shar", "storage_path": "", "storage_key": ""}
    shape = [frames, len(row.codes)]
    shift = _seconds(row, facts) / frames if frames else 1 / facts.frame_rate
    return {"array": {**place, "shape": shape}, "temporal_dim": 0, "frame_shift": shift, "start": 0.0}


def _cut(row: Row, facts: CodecInfo) -> Record:
    """lhotse's MonoCut, without a recording: the text is a supervision, the whole record is under `vokens`."""
    span = {"start": 0.0, "duration": _seconds(row, facts), "channel": 0}
    spoken = {name: getattr(row, name) for name in ("text", "speaker", "language")}
    spoken = {name: value for name, value in spoken.items() if value is not None}
    supervision = {"id": row.key, "recording_id": row.key, **span, **spoken}
    return {
        "id": row.key,
        **span,
        "supervisions": [supervision] if spoken else [],
        # without a recording, `truncate` reads the sampling rate here
        "custom": {"vokens": to_record(row), "sampling_rate": facts.sample_rate},
        "type": "MonoCut",
    }


def _seconds(row: Row, facts: CodecInfo) -> float:
    """The duration; where the row has none, that of its frames, at least one, since lhotse needs a positive one."""
    return float(row.duration) or max(row.codes.shape[1], 1) / facts.frame_rate


def _gzip(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(content)
    return file.getvalue()
