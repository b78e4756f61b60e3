"""Our S3Gen beside chatterbox-tts, CosyVoice 3's beside its plain network: speed, floor, and whether they agree.

Both run in this process with the same random weights, voice, noise and number of threads, one after the other.
chatterbox-tts speaks one utterance at a time, so a batch goes through it row by row. Floor: the operations of the
network over the rate of a large matrix product, measured in the same run. Streams stand beside the whole utterance of
chatterbox-tts, which has no streams. CosyVoice 3 stands beside a straightforward composition of the same network
(`plain_cosyvoice3.py`), whose stream computes all that was said again for every chunk, and a stream of two minutes says
what its first and its last chunks cost.

    python benchmarks/s3gen.py [--threads 2] [--product torch onednn] [--seconds 4 10] [--batches 1 8]
    python benchmarks/s3gen.py --models cosyvoice3 [--threads 2] [--seconds 4] [--minutes 2]
    python benchmarks/s3gen.py --models cosyvoice3 --seconds --minutes 2      the long stream alone

the first after `make peers`.
"""

import contextlib
import io
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Report, best, options
from plain_cosyvoice3 import Plain
from torch import Tensor

from vokens.models.s3gen import ReferenceVoice, S3GenModel
from vokens.models.s3gen.config import DIALECTS, S3GenModelConfig

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
            voice = {
                name: value for name, value in self.ref_dict.items() if name != "tokenizer"
            }  # ours alone
            return self.theirs.inference(self.rows[row][None], ref_dict=voice)[0][0]

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


class Third:
    """CosyVoice 3 with random weights and a random voice, of the released size or small; lengths in seconds."""

    # GFLOP as above, of one branch of the guidance, and of the vocoder.
    PER_FRAME, PER_PAIR, VOCODER = 0.378, 9.0e-5, 0.67

    def __init__(self, small: bool, report: Report) -> None:
        flow = DIALECTS["cosyvoice3"]
        if small:
            few = {"decoder_channels": 128, "decoder_num_heads": 2, "decoder_num_mid_blocks": 2}
            flow = replace(flow, pre_lookahead_channels=128, **few)
        config = replace(S3GenModelConfig.of_flow(flow), tokenizer=None, speaker_encoder=False)
        if small:
            vocoder = replace(config.mel2wav, base_channels=64, f0_predictor_cond_channels=64)
            config = replace(config, mel2wav=vocoder)
        torch.manual_seed(0)
        self.ours, self.report, self.small = S3GenModel(config).named("cosyvoice3"), report, small
        for name, weight in self.ours.flow.named_parameters():
            if "modulation" in name:  # zero in a fresh network: its blocks would do nothing
                weight.normal_(0, 0.02)
        self.plain = Plain(self.ours)
        self.ours.set_dtype(report.dtype)

    def voice(self, seconds: float) -> dict[str, Tensor]:
        count = int(seconds * TOKENS_PER_SECOND)
        return {
            "prompt_token": torch.randint(6561, (1, count), generator=seeded(0)),
            "prompt_feat": torch.randn(1, 2 * count, 80, generator=seeded(1)),
            "embedding": torch.randn(1, 192, generator=seeded(2)),
        }

    def tokens(self, seconds: float) -> Tensor:
        return torch.randint(6561, (int(seconds * TOKENS_PER_SECOND),), generator=seeded(3))

    def work(self, frames: float, target: float, keys: float) -> float:
        if self.small:
            return 0.0  # not the sizes that were counted
        calls = 2 * self.ours.config.flow.cfm_steps
        flow = calls * (self.PER_FRAME * frames + self.PER_PAIR * frames * keys)
        return flow + self.VOCODER * 2 * TOKENS_PER_SECOND * target

    def whole(self, seconds: float) -> None:
        voice, tokens = self.voice(seconds), self.tokens(seconds)
        (mel, _), theirs = best(lambda: self.plain.inference(tokens, voice), self.report.repeats)
        frames = 4 * TOKENS_PER_SECOND * seconds
        for _ in self.report.each_product():
            wave, ours = best(lambda: self.ours.inference(tokens, ref_dict=voice), self.report.repeats)
            if wave[0].shape[1] != 960 * len(tokens):
                raise RuntimeError("samples are missing")
            error = (self.ours(tokens, ref_dict=voice) - mel).abs().max()
            self.add(
                "whole", seconds, ours, theirs, self.work(frames, seconds, frames), f"mels within {error:.0e}"
            )

    def stream(self, seconds: float) -> None:
        voice, tokens = self.voice(seconds), self.tokens(seconds)
        start, first = measure.clock(), 0.0
        for _ in self.plain.stream(tokens, voice):
            first = first or measure.clock() - start
        theirs, waited = measure.clock() - start, first
        for _ in self.report.each_product():
            times = self.pieces(tokens, voice)
            note = f"first sound {times[0]:.2f} s, theirs {waited:.2f} s"
            self.add("stream", seconds, sum(times), theirs, 0.0, note)

    def pieces(self, tokens: Tensor, voice: dict[str, Tensor]) -> list[float]:
        """Seconds of each piece of a stream."""
        times, last, count = [], measure.clock(), 0
        for wave in self.ours.stream(tokens, voice):
            count += len(wave)
            times.append(measure.clock() - last)
            last = measure.clock()
        if count != 960 * len(tokens):
            raise RuntimeError("the stream lost samples")
        return times

    def long(self, minutes: float) -> None:
        """A stream's chunks once its context is full: median of the first and of the last quarter."""
        for _ in self.report.each_product():
            times = self.pieces(self.tokens(60 * minutes), self.voice(4.0))
            steady = times[8:-1]  # the last is what the vocoder kept
            size = max(1, len(steady) // 4)
            begin, end = (statistics.median(part) for part in (steady[:size], steady[-size:]))
            note = f"a chunk: {begin:.3f} s in the first quarter, {end:.3f} s in the last ({end / begin:.2f} times)"
            self.report.add(
                f"cosyvoice3, stream of {minutes:g} min", sum(times), audio=60 * minutes, note=note
            )

    def add(self, label: str, seconds: float, ours: float, theirs: float, work: float, note: str) -> None:
        name = f"cosyvoice3{', small' if self.small else ''}, {seconds:g} s + {seconds:g} s, {label}"
        self.report.add(name, ours, theirs, audio=seconds, gflop=work or None, note=note)


def chatterbox(report: Report, lengths: list[float], sizes: list[int]) -> None:
    """Rows of the base and of the distilled release."""
    # Not this folder, whose s3tokenizer.py is no package.
    sys.path[0] = str(Path(__file__).parents[1] / "tests" / "peers")
    import published_s3gen as peer

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


def cosyvoice3(args: Any, report: Report, lengths: list[float]) -> None:
    """Whole, in streams, and a long stream."""
    case = Third(args.quick, report)
    case.plain.inference(case.tokens(0.4), case.voice(0.4))  # warm up
    case.pieces(case.tokens(0.4), case.voice(0.4))
    for seconds in [2.0] if args.quick else lengths:
        case.whole(seconds)
        case.stream(seconds)
    case.long(0.5 if args.quick else args.minutes)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--models", nargs="+", choices=("chatterbox", "cosyvoice3"), default=["chatterbox", "cosyvoice3"]
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="of CosyVoice 3's long stream")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="*",
        default=[4.0, 10.0],
        help="of the prompt, and of the speech; none for the long stream alone",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    names = {"chatterbox": "chatterbox-tts 0.1.7", "cosyvoice3": "CosyVoice 3's network, composed plainly"}
    report = Report(args, " and ".join(names[name] for name in args.models))
    lengths = [0.4] if args.quick else args.seconds
    sizes = [1, 2] if args.quick else args.batches
    with torch.inference_mode():
        if "chatterbox" in args.models:
            chatterbox(report, lengths, sizes)
        if "cosyvoice3" in args.models:
            cosyvoice3(args, report, lengths)


if __name__ == "__main__":
    main()
