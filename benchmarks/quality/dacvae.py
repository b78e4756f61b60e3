"""How well autoencoders of continuous latents resynthesise: held-out recordings through each, beside themselves.

    python benchmarks/quality/dacvae.py --data MANIFEST --model runs/dacvae_mini/model \
        --model runs/flowae_mini/model@1,2,4,10 [--limit 30] [--out FOLDER]

--model may be given several times: a folder or name that vokens.load opens; behind @ the numbers of steps of a flow.
--evaluators: folder of the evaluator models, as for vokens bench. --out keeps the waves. Columns are means:

    mel         mean absolute difference of natural-log mels, nepers (vokens.bench.metrics), at 16 kHz
    stoi        short-time intelligibility; wer: word error of Moonshine, %, edits of all recordings over words of all
    rtf         seconds of CPU, one thread, per second of speech: encode and decode
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vokens import audio
from vokens.bench.metrics import log_mel_distance, stoi
from vokens.evaluator_files import find_evaluator
from vokens.models.moonshine import Moonshine
from vokens.models.pretrained import load
from vokens.text.transcripts import normalised_words, word_edits
from vokens.train.data import Clip, read_clips


def chosen(args: argparse.Namespace) -> list[Clip]:
    """Recordings at equal distances in the order of their ids: every speaker is heard."""
    clips = sorted(read_clips(args.data, args.split, "en", with_text=True), key=lambda clip: clip.id)
    count = min(args.limit, len(clips))
    return [clips[int((i + 0.5) * len(clips) / count)] for i in range(count)]


def rows(args: argparse.Namespace) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """(name, model, options of decode)."""
    for wanted in args.model:
        source, _, counts = wanted.partition("@")
        model = load(source)
        for steps in counts.split(","):
            name = f"{model.name}, {steps} step{'s' * (steps != '1')}" if steps else model.name
            yield name, model, {"steps": int(steps)} if steps else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--evaluators", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips, recogniser = chosen(args), Moonshine(find_evaluator("moonshine-tiny-en", args.evaluators))
    words = [normalised_words(clip.text or "") for clip in clips]
    recordings = [audio.load(clip.path, 16000)[0] for clip in clips]
    seconds = sum(len(wave) for wave in recordings) / 16000
    print(
        f"{len(clips)} recordings, {seconds:.0f} s\n\n| | mel | stoi | wer | rtf |\n|---|---:|---:|---:|---:|"
    )

    def line(name: str, values: dict[str, list[float]], spent: float) -> None:
        wer = 100 * sum(values["edits"]) / sum(len(text) for text in words)
        mel, heard = (float(np.nanmean(values[key])) for key in ("mel", "stoi"))
        print(f"| {name} | {mel:.3f} | {heard:.3f} | {wer:.1f} | {spent / seconds:.3f} |", flush=True)

    def judged(waves: Iterator[np.ndarray]) -> dict[str, list[float]]:
        values: dict[str, list[float]] = defaultdict(list)
        for wave, recording, text in zip(waves, recordings, words, strict=True):
            values["mel"].append(log_mel_distance(recording, wave))
            values["stoi"].append(stoi(recording, wave))
            values["edits"].append(word_edits(text, normalised_words(recogniser.transcribe(wave))))
        return values

    line("recording", judged(iter(recordings)), 0.0)
    for name, model, options in rows(args):
        made, start = [], time.process_time()
        for clip in clips:
            made.append(model.decode(model.encode(str(clip.path)), **options)[0])
        spent = time.process_time() - start
        low = [
            audio.resample(wave, model.sample_rate, 16000)[: len(recording)]
            for wave, recording in zip(made, recordings, strict=True)
        ]
        low = [
            np.pad(wave, (0, len(recording) - len(wave)))
            for wave, recording in zip(low, recordings, strict=True)
        ]
        line(name, judged(iter(low)), spent)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            for clip, wave in zip(clips, made, strict=True):
                audio.save(
                    args.out / f"{clip.id}-{name.replace(', ', '-').replace(' ', '')}.wav",
                    wave,
                    model.sample_rate,
                )


if __name__ == "__main__":
    main()
