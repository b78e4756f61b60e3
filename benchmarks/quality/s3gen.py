"""How well a trained S3Gen speaks: held-out recordings through its tokens, its flow in several numbers of steps, and
its vocoder, beside the vocoder alone on true mels and the recordings themselves.

    python benchmarks/quality/s3gen.py --data MANIFEST --tokenizer runs/s3_scratch/codec --flow runs/s3gen_mini/flow \
        --distilled runs/s3gen_distill/flow --vocoder runs/hift_mini/vocoder [--limit 20] [--out FOLDER]

The voice is CAM++'s vector of the recording, without a prompt. --flow, --distilled and --vocoder may be left out.
--evaluators: folder of the evaluator models, as for vokens bench. --out keeps the waves. Columns are means:

    mel         L1 between log-mels, nepers: generated against true before the vocoder, else of the wave's own mel
    stoi        of the wave; means little where no vocoder keeps the timing and phase of the recording
    f0          Hz, mean distance of pitch where both have one; voicing: frames on which both agree, %
    wer         word error of Moonshine, %: edits of all recordings over words of all
    voice       cosine of CAM++'s vectors with the recording's
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.audio.f0 import track_pitch
from vokens.audio.mel import MEL_24K_80, LogMel
from vokens.bench.evaluators import SpeakerEvaluator
from vokens.bench.metrics import stoi
from vokens.evaluator_files import find_evaluator
from vokens.models.moonshine import Moonshine
from vokens.models.pretrained import load
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.text.transcripts import normalised_words, word_edits
from vokens.train.data import Clip, read_clips

RATE, HOP = MEL_24K_80.sample_rate, MEL_24K_80.hop_length
COLUMNS = ("mel", "stoi", "f0", "voicing", "wer", "voice")
MEL = LogMel(MEL_24K_80)


class Judge:
    """Compares waves with a recording."""

    def __init__(self, folder: Path | None) -> None:
        self.recogniser = Moonshine(find_evaluator("moonshine-tiny-en", folder))
        self.speaker = SpeakerEvaluator(find_evaluator("campplus-zh-en", folder))

    def values(self, recording: np.ndarray, wave: np.ndarray, text: str) -> dict[str, float]:
        """Of waves (N,) at 24 kHz, N a multiple of the hop."""
        low, low_recording = (audio.resample(x, RATE, 16000) for x in (wave, recording))
        pitch, wanted = (track_pitch(x, RATE, HOP) for x in (wave, recording))
        both = (pitch > 0) & (wanted > 0)
        voices = [self.speaker.embed(x) for x in (low, low_recording)]
        words = normalised_words(text)
        return {
            "mel": distance(mel_of(wave), mel_of(recording)),
            "stoi": stoi(low_recording, low),
            "f0": float(np.abs(pitch - wanted)[both].mean()) if both.any() else np.nan,
            "voicing": 100 * float(((pitch > 0) == (wanted > 0)).mean()),
            "edits": word_edits(words, normalised_words(self.recogniser.transcribe(low))),
            "words": len(words),
            "voice": float(voices[0] @ voices[1] / np.linalg.norm(voices[0]) / np.linalg.norm(voices[1])),
        }


def mel_of(wave: np.ndarray) -> Tensor:
    """(80, T)."""
    return MEL(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None])[0]


def distance(found: Tensor, wanted: Tensor) -> float:
    frames = min(found.shape[1], wanted.shape[1])
    return float((found[:, :frames] - wanted[:, :frames]).abs().mean())


def chosen(args: argparse.Namespace) -> list[Clip]:
    """Recordings at equal distances in the order of their ids: every speaker is heard."""
    clips = sorted(read_clips(args.data, args.split, "en", with_text=True), key=lambda clip: clip.id)
    count = min(args.limit, len(clips))
    return [clips[int((i + 0.5) * len(clips) / count)] for i in range(count)]


def generated(args: argparse.Namespace, clips: list[Clip], judge: Judge) -> Iterator[tuple[str, int, Tensor]]:
    """(row, number of the clip, mel (80, T)) of all flows and numbers of steps."""
    if not args.flow and not args.distilled:
        return
    tokenizer = load(args.tokenizer)
    for name, folder, counts in (("flow", args.flow, (1, 2, 10)), ("distilled", args.distilled, (1, 2))):
        if not folder:
            continue
        flow = TokenToMel.from_pretrained(folder)
        for number, clip in enumerate(clips):
            tokens = tokenizer.encode(str(clip.path)).codes[0, 0]
            vector = torch.from_numpy(judge.speaker.embed(audio.load(clip.path, 16000)[0]))
            voice = Voice(tokens[:0], torch.zeros(0, flow.config.mel_bins), vector)
            for steps in counts:
                generator = torch.Generator().manual_seed(number)
                mel, _ = flow.generate(tokens, voice, schedule=flow.schedule(steps), generator=generator)
                yield f"{name}, {steps} step{'s' * (steps > 1)}", number, mel[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=name == "data")
    for name in ("flow", "distilled", "vocoder", "judges", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips, judge = chosen(args), Judge(args.evaluators)
    recordings = [audio.load(clip.path, RATE)[0] for clip in clips]
    recordings = [wave[: len(wave) // HOP * HOP] for wave in recordings]
    mels = [mel_of(wave) for wave in recordings]
    vocoder = HiFTNetModel.from_pretrained(args.vocoder) if args.vocoder else None
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)

    def hear(row: str, number: int, wave: np.ndarray) -> None:
        recording = recordings[number]
        wave = np.pad(wave, (0, max(0, len(recording) - len(wave))))[: len(recording)]
        rows[row].append(judge.values(recording, wave, clips[number].text or ""))
        if args.out:
            audio.save(
                args.out / f"{clips[number].id}-{row.replace(', ', '-').replace(' ', '_')}.wav", wave, RATE
            )

    def vocode(mel: Tensor) -> np.ndarray:
        assert vocoder is not None  # asked where there is one
        return vocoder.inference(mel[None], seed=0)[0][0].numpy()

    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    frame = torch.cat(mels, 1).mean(1, keepdim=True)
    for number, mel in enumerate(mels):
        rows["mean mel"].append({"mel": distance(frame.expand_as(mel), mel)})
        hear("recording", number, recordings[number])
        if vocoder is not None:
            hear("true mel, vocoder", number, vocode(mel))
    for row, number, mel in generated(args, clips, judge):
        rows[row].append({"mel": distance(mel, mels[number])})
        if vocoder is not None:
            hear(f"{row}, vocoder", number, vocode(mel))
    seconds = sum(map(len, recordings)) / RATE
    print(
        f"{len(clips)} recordings, {seconds:.0f} s\n\n| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}"
    )
    for row, values in rows.items():
        known = {name: [v[name] for v in values if not np.isnan(v[name])] for name in values[0]}
        means = {name: float(np.mean(found)) for name, found in known.items() if found}
        if "words" in means:
            means["wer"] = 100 * means["edits"] / means["words"]
        print(f"| {row} | {' | '.join(f'{means[c]:.3g}' if c in means else '' for c in COLUMNS)} |")


if __name__ == "__main__":
    main()
