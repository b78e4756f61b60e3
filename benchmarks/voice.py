"""Where the words are lost: every stage of a speaking model alone, from the recording to speech out of text.

    python benchmarks/voice.py --voice say --synthetic MANIFEST --real MANIFEST --json voice.json [--out FOLDER]
    python benchmarks/voice.py --tokenizer FOLDER --autoencoder FOLDER --flow FOLDER --lm FOLDER ... --only autoencoder

Rows; those whose models are not given are left out:

    recording        as it is
    autoencoder      through latents and back
    tokens, N steps  its true tokens through the flow, in the voice of another recording of its speaker
    text, N steps    its text through all, in that voice
    NAME             its text through another speaking model (--beside)

Columns: word error (%) by each recogniser, figures and words being the same; speaker (cosine of CAM++ with the
recording: the encoder that a flow may have been given, so that it flatters); dnsmos (P.835 overall); level (dB above
the recording's); peak (mean of the largest samples: above 1 a file clips); f0 (RMS, cents) and stoi where speech runs
beside the recording; bad (% of texts without a sound, or that ran into the most tokens that a text may have); first
(seconds of one thread until the first sound of a stream); s (seconds of sound of each); rtf (seconds of one thread
over seconds of sound).

Sentences: --synthetic gives 100 of its splits test and valid, --real 60 English ones of its split test, from every
speaker alike. --json keeps them with all results, so that the same command goes on where it stopped, measures anew what
another model changed, and nothing else; --items takes the sentences of another such file.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.pop(0)  # this file's folder, where names of packages would find benchmarks

from vokens import audio
from vokens.atomic import atomic_write
from vokens.bench.evaluators import SpeakerEvaluator, open_recogniser
from vokens.bench.evaluators.mos import DNSMOS
from vokens.bench.metrics import cosine, pitch_error, stoi
from vokens.errors import VokensError
from vokens.evaluator_files import find_evaluator, models_folder
from vokens.models.codec import Codec
from vokens.models.dacvae import DACVAE
from vokens.models.learnable.decoder import FlowDecoder, SpeakerPrompt
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.pretrained import load
from vokens.models.speaking import Speaker, speaker
from vokens.nn.campplus_onnx import open_campplus
from vokens.text import normalise
from vokens.text.transcripts import normalised_words, word_edits

RATE = 16000  # of the evaluators
REFERENCE = 6.0  # s: of a speaker's other recordings, the one nearest to it is the voice
SETS = {"synthetic": (("test", "valid"), 100), "real": (("test",), 60)}  # splits, sentences


class Clip(NamedTuple):
    """A line of a manifest of ours."""

    id: str
    path: Path
    text: str
    speaker: str
    duration: float


@dataclass(frozen=True)
class Item:
    """A sentence: its recording, and another of its speaker."""

    record: Clip
    reference: Clip

    @property
    def text(self) -> str:
        text = self.record.text
        return text.lower() if text.isupper() else text


@dataclass(frozen=True)
class Stage:
    """A row.

    Attributes:
        make: an item and its number to a wave (T,) at `rate`. models: fingerprints and settings of what makes it.
        beside: whether it runs beside the recording. most: an item's most seconds, which only endless speech reaches.
        stream: the same piece by piece. before: what is done once for an item's voice, and is not timed.
    """

    name: str
    make: Callable[[Item, int], np.ndarray]
    rate: int
    models: str = ""
    beside: bool = True
    most: Callable[[Item], float] | None = None
    stream: Callable[[Item, int], Iterator[np.ndarray]] | None = None
    before: Callable[[Item], object] = id


# Sentences ----------------------------------------------------------------------------------------------------------


def read(path: Path, splits: tuple[str, ...]) -> list[Clip]:
    """English recordings with text; the last line of a manifest that still grows may be half a one."""
    whole = (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    lines = (line for line in map(json.loads, whole) if line["split"] in splits and line["language"] == "en")
    names = ("text", "speaker", "duration")
    return [
        Clip(line["id"], path.parent / line["path"], *(line[name] for name in names))
        for line in lines
        if line["text"]
    ]


def chosen(path: Path, name: str, kept: list[list[str]] | None) -> list[Item]:
    """The sentences of a set: those that are kept, [id, id of the reference] each, or new ones, speaker by speaker."""
    splits, count = SETS[name]
    clips = read(path, splits)
    if kept is not None:
        known = {clip.id: clip for clip in clips}
        if missing := [one for pair in kept for one in pair if one not in known]:
            sys.exit(
                f"{path} lacks {missing[0]}, a sentence of the --json or --items file: give its manifest"
            )
        return [Item(known[one], known[other]) for one, other in kept]
    speakers: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.id):
        speakers[clip.speaker].append(clip)
    rows = []
    for own in (own for own in speakers.values() if len(own) > 1):
        own = own[:: -(-len(own) // count)]  # as many at most, from all of them
        nearest = sorted(own, key=lambda clip: abs(clip.duration - REFERENCE))[:2]
        rows.append([Item(one, nearest[one is nearest[0]]) for one in own])
    turns = [item for turn in zip_longest(*rows) for item in turn if item is not None]
    if not turns:
        sys.exit(f"{path} has no speaker with two English sentences with text in {' or '.join(splits)}")
    return turns[:count]


# Stages -------------------------------------------------------------------------------------------------------------


def opened(args: argparse.Namespace) -> dict[str, Any]:
    """The parts that were given: of the whole voice, each replaced by what was given for it."""
    parts: dict[str, Any] = {}
    if args.voice:
        whole = load(args.voice)
        if not isinstance(whole, LearnableSpeech):
            sys.exit(f"--voice {args.voice} holds a {whole.system}: a learnable is accepted")
        parts = {name: getattr(whole, name) for name in ("lm", "flow", "autoencoder", "tokenizer", "speaker")}
        args.prompt = whole.config.flow_prompt if args.prompt is None else args.prompt
    given = {name: getattr(args, name) for name in ("lm", "flow", "autoencoder", "tokenizer")}
    parts |= {name: load(source) for name, source in given.items() if source}
    flow = parts.get("flow")
    if flow is not None and flow.speaker_encoder is None and parts.get("speaker") is None:
        parts["speaker"] = open_campplus(models_folder(args.evaluators) / "campplus-zh-en")
    parts = {name: part for name, part in parts.items() if part is not None}
    if {"flow", "autoencoder", "tokenizer"} <= parts.keys():
        link(parts["flow"], parts["autoencoder"], parts["tokenizer"])
    return parts


def link(flow: LearnableFlow, autoencoder: DACVAE, tokenizer: Codec) -> None:
    """Let a flow take parts that were trained on, or packed, since; a line says so."""
    facts = {
        "latents_fingerprint": autoencoder.fingerprint,
        "tokens": tokenizer.name,
        "tokens_fingerprint": tokenizer.fingerprint,
    }
    other = [name for name, value in facts.items() if getattr(flow.config, name) not in ("", value)]
    if other:
        print(f"the flow was trained with other {', '.join(other)}: measured all the same", file=sys.stderr)
        flow.config = replace(flow.config, **{name: facts[name] for name in other})


def stages(args: argparse.Namespace) -> Iterator[Stage]:
    """The rows that can be measured."""
    parts = opened(args)
    marks = {name: part.fingerprint for name, part in parts.items() if hasattr(part, "fingerprint")}
    vae = parts.get("autoencoder")
    yield Stage("recording", lambda item, number: audio.load(item.record.path, RATE)[0], RATE)
    if vae is None:
        return
    rate = vae.sample_rate
    yield Stage(
        "autoencoder",
        lambda item, number: vae.decode(vae.encode(item.record.path))[0],
        rate,
        marks["autoencoder"],
    )
    if not {"flow", "tokenizer"} <= parts.keys():
        return
    prompt = args.prompt or 0.0
    decoding = parts["flow"], vae, parts["tokenizer"], parts.get("speaker")
    decoder = FlowDecoder(*decoding, prompt=prompt)
    voices: dict[str, SpeakerPrompt] = {}

    def voice(item: Item, embed: Callable[[str], SpeakerPrompt]) -> SpeakerPrompt:
        if item.reference.id not in voices:
            voices[item.reference.id] = embed(item.reference.path)
        return voices[item.reference.id]

    def flowed(steps: int) -> Callable[[Item, int], np.ndarray]:
        def make(item: Item, number: int) -> np.ndarray:
            rows = decoder.ids(decoder.tokenize(item.record.path))
            known = voice(item, decoder.voice)
            return decoder.speak(rows, known, seed=args.seed + number, n_cfm_timesteps=steps)[0]

        return make

    base = " ".join(marks[name] for name in ("autoencoder", "flow", "tokenizer")) + f" {prompt:g} {args.seed}"
    for steps in args.steps:
        name = f"tokens, {steps} step{'s' * (steps > 1)}"
        yield Stage(name, flowed(steps), rate, base, before=lambda item: voice(item, decoder.voice))
    if "lm" in parts:
        voices = {}  # of now on, with the language model's speaker token
        yield from texts(
            args, LearnableSpeech(parts["lm"], *decoding, flow_prompt=prompt), f"{base} {marks['lm']}", voice
        )


def texts(
    args: argparse.Namespace,
    model: LearnableSpeech,
    models: str,
    voice: Callable[[Item, Callable[[str], SpeakerPrompt]], SpeakerPrompt],
) -> Iterator[Stage]:
    """Rows of texts through all, at each number of steps."""
    law = replace(model.sampler, temperature=args.temperature)

    def options(item: Item, number: int, steps: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(args.seed + number)
        facts = {"steps": steps, "sampler": law, "generator": generator, "pause": 0.0}
        return {"voice": voice(item, model.voice), **facts}

    def most(item: Item) -> float:
        counts = [model.lm.bounds(len(model.lm.ids(piece)))[1] for piece in model.pieces(item.text)]
        return sum(counts) * model.flow.ratio / model.autoencoder.frame_rate

    models = f"{models} {args.temperature:g}"
    for steps in args.steps:
        yield Stage(
            f"text, {steps} step{'s' * (steps > 1)}",
            lambda item, number, n=steps: model.say(item.text, **options(item, number, n))[0],
            model.sample_rate,
            models,
            False,
            most,
            lambda item, number, n=steps: model.say_stream(item.text, **options(item, number, n)),
            lambda item: voice(item, model.voice),
        )


def others(args: argparse.Namespace) -> Iterator[Stage]:
    """Rows of other speaking models, which go on from the reference and its text."""
    for source in args.beside:
        opened = load(source)
        model: Speaker = speaker(opened)

        def said(item: Item, number: int, model: Speaker = model) -> np.ndarray:
            generator = torch.Generator().manual_seed(args.seed + number)
            told = item.reference.text
            return model.say(item.text, item.reference.path, voice_text=told, generator=generator)[0]

        yield Stage(opened.name, said, model.sample_rate, f"{opened.fingerprint} {args.seed}", False)


# Measuring ----------------------------------------------------------------------------------------------------------


class Evaluators:
    """What listens; recognisers that are not on this machine are left out, with a line that says so."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.recognisers = {}
        for name in args.recognisers:
            try:
                self.recognisers[name] = open_recogniser(name, args.evaluators)
            except VokensError as error:
                print(f"without {name}: {error}", file=sys.stderr)
        if not self.recognisers:
            sys.exit("no recogniser is there: docs/jobs/metrics.md says how to come by one")
        self.speakers = SpeakerEvaluator(find_evaluator("campplus-zh-en", args.evaluators))
        self.dnsmos = DNSMOS(find_evaluator("dnsmos", args.evaluators))

    def measure(self, stage: Stage, item: Item, number: int, out: Path | None) -> dict[str, float]:
        stage.before(item)
        start = time.process_time()
        wave = stage.make(item, number)
        took, seconds = time.process_time() - start, len(wave) / stage.rate
        if out:
            audio.save(out / f"{item.record.id.replace('/', '_')} {stage.name}.flac", wave, stage.rate)
        recording = audio.load(item.record.path, RATE)[0]
        low = audio.resample(wave, stage.rate, RATE)
        low = np.pad(low, (0, max(0, RATE // 2 - len(low))))
        words = normalised_words(normalise(item.text))
        line = {"words": len(words), "seconds": seconds, "took": took}
        for name, recogniser in self.recognisers.items():
            transcript = recogniser.transcribe(low)
            line[f"wer {name}"] = word_edits(words, normalised_words(normalise(transcript)))
            print(f"{item.record.id} {stage.name}, {name}: {transcript}", file=sys.stderr)
        line["speaker"] = cosine(self.speakers.embed(recording), self.speakers.embed(low))
        line["dnsmos"] = self.dnsmos.rate(low)["dnsmos"]
        line["level"] = 20 * float(np.log10((rms(low) + 1e-6) / (rms(recording) + 1e-6)))
        line["peak"] = float(np.abs(wave).max(initial=0))
        if stage.beside:
            same = np.pad(low[: len(recording)], (0, max(0, len(recording) - len(low))))
            line["f0"], line["stoi"] = pitch_error(recording, same)[0], stoi(recording, same)
        if stage.most is not None:
            line["bad"] = float(not seconds or seconds >= stage.most(item) - 1e-6)
        if stage.stream is not None:
            pieces, start = stage.stream(item, number), time.process_time()
            next(pieces, None)
            line["first"] = time.process_time() - start
        return line


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


class Results:
    """All lines by set and row, in a file that is whole after every line."""

    def __init__(self, path: Path | None, items: Path | None) -> None:
        self.path = path
        empty: dict[str, Any] = {"items": {}, "rows": {}}
        self.content = json.loads(path.read_text()) if path and path.exists() else empty
        if items and not self.content["items"]:
            self.content["items"] = json.loads(items.read_text())["items"]

    def lines(self, name: str, stage: Stage) -> dict[str, dict[str, float]]:
        """The lines of a row by sentence; of other models none."""
        row = self.content["rows"].setdefault(f"{name}: {stage.name}", {"models": stage.models, "lines": {}})
        if row["models"] != stage.models:
            row.update(models=stage.models, lines={})
        return row["lines"]

    def save(self) -> None:
        if self.path:
            with atomic_write(self.path) as partial:
                partial.write_text(json.dumps(self.content, indent=1) + "\n")


def table(results: Results) -> str:
    """One Markdown table of all rows."""
    rows = {
        name: list(row["lines"].values()) for name, row in results.content["rows"].items() if row["lines"]
    }
    heads = dict.fromkeys(head for lines in rows.values() for head in chain(*lines))
    wers = [head for head in heads if head.startswith("wer ")]
    means = {
        "speaker": "{:.3f}",
        "dnsmos": "{:.2f}",
        "level": "{:+.1f}",
        "peak": "{:.2f}",
        "f0": "{:.0f}",
        "stoi": "{:.3f}",
    }
    titles = ["", *wers, *means, "bad %", "first", "s", "rtf", "n"]
    text = [f"| {' | '.join(titles)} |", f"|---{'|---:' * (len(titles) - 1)}|"]
    for name, lines in rows.items():
        seconds = sum(line["seconds"] for line in lines)
        cells = [name]
        for head in wers:
            known = [line for line in lines if head in line]
            total = sum(line["words"] for line in known)
            cells.append(f"{100 * sum(line[head] for line in known) / total:.1f}" if total else "–")
        for key, shape in means.items():
            values = [line[key] for line in lines if key in line and np.isfinite(line[key])]
            cells.append(shape.format(fmean(values)) if values else "–")
        bad = [line["bad"] for line in lines if "bad" in line]
        cells.append(f"{100 * fmean(bad):.0f}" if bad else "–")
        first = [line["first"] for line in lines if "first" in line]
        cells.append(f"{fmean(first):.2f}" if first else "–")
        took = sum(line["took"] for line in lines) / max(seconds, 1e-9)
        cells += [f"{seconds / len(lines):.1f}", f"{took:.2f}", str(len(lines))]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", help="a whole Learnable-Speech")
    for part in ("tokenizer", "autoencoder", "flow", "lm"):
        parser.add_argument(f"--{part}", help="name or folder; instead of the one of --voice")
    parser.add_argument("--beside", action="append", default=[], help="another speaking model")
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, help="manifest.jsonl")
    parser.add_argument("--limit", type=int, help="sentences of each set")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 10], help="of the flow")
    parser.add_argument("--prompt", type=float, help="seconds of the reference that the flow goes on from")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the language model's tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="rows, or how they begin")
    parser.add_argument("--recognisers", nargs="+", default=["moonshine-base-en", "whisper-base"])
    parser.add_argument("--json", type=Path, help="file of all results, to go on from")
    parser.add_argument("--items", type=Path, help="another such file, whose sentences are taken")
    parser.add_argument("--out", type=Path, help="folder for the waves")
    parser.add_argument("--evaluators", type=Path, help="folder of the evaluators' models")
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in SETS if getattr(args, name)}
    if not given:
        parser.error("give --synthetic, --real or both: there is nothing to measure on")
    torch.set_num_threads(1)
    results, evaluators = Results(args.json, args.items), Evaluators(args)
    items = {}
    for name, path in given.items():
        items[name] = chosen(path, name, results.content["items"].get(name))
        results.content["items"][name] = [[item.record.id, item.reference.id] for item in items[name]]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    for stage in chain(stages(args), others(args)):
        if args.only and not stage.name.startswith(tuple(args.only)):
            continue
        for name, some in items.items():
            lines = results.lines(name, stage)
            for number, item in enumerate(some[: args.limit]):
                line = lines.get(item.record.id)
                if line is None or not all(f"wer {one}" in line for one in evaluators.recognisers):
                    lines[item.record.id] = evaluators.measure(stage, item, number, args.out)
                    results.save()
    print(table(results))


if __name__ == "__main__":
    main()
