"""How well a whole Learnable-Speech speaks: held-out texts, in the voice of another recording of the same speaker.

    python benchmarks/learnable_speech.py --model FOLDER --data MANIFEST [--limit 20] [--temperature 0.7]
        [--uslm FOLDER] [--out FOLDER]

FOLDER is what `LearnableSpeech.save_pretrained` wrote. Rows, from the recording to speech out of text alone:

    recording        as it is
    autoencoder      through latents and back
    flow, N steps    its tokens to latents to sound: what the language model could reach at best
    said, N steps    its text, zero-shot: the speaker's vectors of another recording
    uslm             its text through a USLM, which goes on from the other recording and its text

Columns: wer (Moonshine tiny, %), voice (cosine of CAM++ with the recording), dnsmos (P.835 overall), seconds of sound,
rtf (seconds of one thread over seconds of sound).
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.pop(0)  # this file's folder, where names of packages would find benchmarks

from vokens import audio
from vokens.bench.judges import find_judge
from vokens.bench.metrics import cosine, normalise_text, word_edits
from vokens.bench.mos import DNSMOS
from vokens.bench.recognise import Moonshine
from vokens.bench.speaker import SpeakerJudge
from vokens.corpus.sources.records import Record, read_records
from vokens.models import load
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.speaking import Speaker, speaker

STEPS = (1, 2, 10)
RATE = 16000  # of the judges


def chosen(path: Path, split: str, limit: int) -> list[tuple[Record, Record]]:
    """Recordings with text at equal distances, each with another one of its speaker."""
    records = [r for r in read_records(path) if r.split == split and r.language == "en" and r.text]
    by_speaker: dict[str | None, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.id):
        by_speaker[record.speaker].append(record)
    pairs = [
        (one, own[(place + 1) % len(own)])
        for own in by_speaker.values()
        if len(own) > 1
        for place, one in enumerate(own)
    ]
    count = min(limit, len(pairs))
    return [pairs[int((i + 0.5) * len(pairs) / count)] for i in range(count)]


def ways(
    model: LearnableSpeech,
    others: dict[str, tuple[Speaker, dict[str, Any]]],
    record: Record,
    reference: Record,
    seed: int,
) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """(row, what makes the wave, its rate)."""
    rate = model.sample_rate

    def through() -> np.ndarray:
        return model.autoencoder.decode(model.autoencoder.encode(record.path))[0]

    def flowed(steps: int) -> np.ndarray:
        assert model.tokenizer is not None
        tokens = model.tokenizer.encode(record.path).codes[0, 0]
        vector = model.voice(reference.path).vector
        generator = torch.Generator().manual_seed(seed)
        latents = model.flow.generate([tokens], vector, steps=steps, generator=generator)
        return model.autoencoder.decode(model.flow.pack(latents))[0]

    yield "recording", lambda: audio.load(record.path, rate)[0], rate
    yield "autoencoder", through, rate
    for steps in STEPS:
        yield f"flow, {steps} step{'s' * (steps > 1)}", lambda steps=steps: flowed(steps), rate
    for name, (other, manner) in others.items():
        prompt = {"voice_text": reference.text or ""} if name == "uslm" else {}

        def said(other: Speaker = other, asked: dict[str, Any] = manner | prompt) -> np.ndarray:
            generator = torch.Generator().manual_seed(seed)
            return other.say((record.text or "").lower(), reference.path, generator=generator, **asked)[0]

        yield name, said, other.sample_rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--uslm", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the language model's tokens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model)
    law = replace(model.sampler, temperature=args.temperature)
    others: dict[str, tuple[Speaker, dict[str, Any]]] = {
        f"said, {steps} steps": (model, {"steps": steps, "sampler": law}) for steps in STEPS[1:]
    }
    if args.uslm:
        others["uslm"] = speaker(load(args.uslm)), {}
    ears = Moonshine(find_judge("moonshine-tiny-en", args.judges))
    voices = SpeakerJudge(find_judge("campplus-zh-en", args.judges))
    listener = DNSMOS(find_judge("dnsmos", args.judges))
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number, (record, reference) in enumerate(chosen(args.data, args.split, args.limit)):
        words = normalise_text(record.text or "")
        original = voices.embed(audio.load(record.path, RATE)[0])
        for row, make, rate in ways(model, others, record, reference, number):
            start = time.process_time()
            wave = make()
            took = time.process_time() - start
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                audio.save(args.out / f"{record.id} {row}.flac", wave, rate)
            low = audio.resample(wave, rate, RATE)
            low = np.pad(low, (0, max(0, RATE // 2 - len(low))))
            transcript = ears.transcribe(low)
            found[row].append(
                {
                    "edits": word_edits(words, normalise_text(transcript)),
                    "words": len(words),
                    "voice": cosine(original, voices.embed(low)),
                    "dnsmos": listener.rate(low)["dnsmos"],
                    "seconds": len(wave) / rate,
                    "took": took,
                }
            )
            print(f"{record.id} {row}: {transcript}", file=sys.stderr)
    print(f"{number + 1} recordings of {args.split}\n")
    print("| | wer | voice | dnsmos | seconds | rtf |\n|---|---:|---:|---:|---:|---:|")
    for row, lines in found.items():
        total = {name: sum(line[name] for line in lines) for name in lines[0]}
        cells = [f"{100 * total['edits'] / total['words']:.1f}", f"{total['voice'] / len(lines):.3f}"]
        cells += [f"{total['dnsmos'] / len(lines):.2f}", f"{total['seconds'] / len(lines):.1f}"]
        cells += [f"{total['took'] / max(total['seconds'], 1e-9):.2f}"]
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
