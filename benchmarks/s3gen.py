"""Our S3Gen beside chatterbox-tts: speed against it and against the floor, and whether the waves are the same.

Both run in this process with the same random weights, voice, noise and number of threads, one after the other.
chatterbox-tts speaks one utterance at a time, so a batch goes through it row by row. Floor: the operations of the
network over the rate of a large matrix product, measured in the same run. Streams stand beside the whole utterance of
chatterbox-tts, which has no streams.

    python benchmarks/s3gen.py [--threads 2] [--product torch onednn] [--seconds 4 10] [--batches 1 8]

after `make peers`.
"""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Report, best, options
from torch import Tensor

sys.path.pop(0)  # this file's folder
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "peers"))
import published_s3gen as peer

from vokens.models.s3gen import ReferenceVoice, S3GenModel

TOKENS_PER_SECOND, RATE = 25, 24000
# GFLOP of the released sizes, counted on the reference: of one estimator call per frame and per frame and key, of the
# encoder per token, of the vocoder per frame.
PER_FRAME, PER_PAIR, PER_TOKEN, VOCODER = 0.1323, 1.147e-4, 0.13, 0.606


def gflop(prompt: float, target: float, calls: int, keys: float | None = None) -> float:
    """Of speech of `target` seconds; calls of the estimator in all. keys: frames that each frame sees, for a stream
    whose prompt is known; all by default."""
    whole = 2 * TOKENS_PER_SECOND * (target if keys is not None else prompt + target)
    seen = whole if keys is None else keys
    flow = calls * (PER_FRAME * whole + PER_PAIR * whole * seen) + PER_TOKEN * whole / 2
    return flow + VOCODER * 2 * TOKENS_PER_SECOND * target


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """One pair of models and lengths in seconds."""

    def __init__(self, theirs: Any, ours: S3GenModel, prompt: float, target: float, report: Report) -> None:
        self.theirs, self.ours, self.prompt, self.target = theirs, ours, prompt, target
        self.report = report
        recording = 0.1 * torch.randn(int(prompt * RATE), generator=seeded(0))
        self.ref_dict = ours.embed_ref(recording, RATE)
        count = int(target * TOKENS_PER_SECOND)
        self.rows = list(torch.randint(6561, (8, count), generator=seeded(1)))
        config = ours.config.flow
        self.calls = config.cfm_steps * (2 if config.cfm_inference_cfg_rate else 1)
        self.name = f"{ours.name}, {prompt:g} s + {target:g} s"

    def published(self, row: int) -> Tensor:
        torch.manual_seed(row)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # its progress
            return self.theirs.inference(self.rows[row][None], ref_dict=dict(self.ref_dict))[0][0]

    def own(self, size: int) -> Tensor:
        generators = [seeded(row) for row in range(size)]
        return self.ours.inference(self.rows[:size], ref_dict=self.ref_dict, generator=generators)[0]

    def batch(self, size: int) -> None:
        wanted, theirs = best(lambda: [self.published(row) for row in range(size)], self.report.repeats)
        for _ in self.report.each_product():
            found, ours = best(lambda: self.own(size), self.report.repeats)
            error = max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
            work = size * gflop(self.prompt, self.target, self.calls)
            self.add(f"batch {size}", ours, theirs, size * self.target, work, f"waves within {error:.0e}")

    def stream(self, context: int = 50) -> None:
        """A fresh voice, and then one whose prompt is known; first: seconds to the first sound."""
        _, theirs = best(lambda: self.published(0), self.report.repeats)
        keys = 2 * (context + self.ours.config.flow.chunk_size)
        for _ in self.report.each_product():
            voice = ReferenceVoice(self.voice())
            for label in ("prompt new", "prompt known"):
                start, first, sound = measure.clock(), 0.0, []
                for wave in self.ours.stream(self.rows[0], voice, context=context):
                    first = first or measure.clock() - start
                    sound.append(wave)
                ours = measure.clock() - start
                if len(np.concatenate(sound)) != int(self.target * TOKENS_PER_SECOND) * 960:
                    raise RuntimeError("the stream lost samples")
                beside = self.prompt if label == "prompt new" else 0.0
                work = gflop(0.0, self.target + beside, self.calls, keys) - VOCODER * 50 * beside
                self.add(f"stream, {label}", ours, theirs, self.target, work, f"first sound {first:.2f} s")

    def voice(self) -> Any:
        from vokens.models.s3gen.voice import one_voice

        return one_voice(self.ref_dict).voice

    def add(self, label: str, ours: float, theirs: float, speech: float, work: float, note: str) -> None:
        self.report.add(f"{self.name}, {label}", ours, theirs, audio=speech, gflop=work, note=note)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[4.0, 10.0], help="of the prompt, and of the speech"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    report = Report(args, "chatterbox-tts 0.1.7")
    lengths = [0.4] if args.quick else args.seconds
    sizes = [1, 2] if args.quick else args.batches
    with torch.inference_mode():
        for meanflow in (False, True):
            theirs = peer.build(meanflow=meanflow)
            ours = S3GenModel.from_published(dict(theirs.state_dict()), None).set_dtype(report.dtype)
            case = Case(theirs, ours, 0.4, 0.4, report)
            case.published(0)  # warm up
            case.own(1)
            for seconds in lengths:
                case = Case(theirs, ours, seconds, seconds, report)
                for size in sizes:
                    case.batch(size)
                case.stream()
            del theirs, ours, case


if __name__ == "__main__":
    main()
