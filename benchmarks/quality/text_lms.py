"""What language models make of held-out texts: their tokens, read by a recogniser, or heard.

    python benchmarks/quality/text_lms.py --data MANIFEST --learnable runs/learnable_lm_mini/lm \
        --tokens runs/s3_scratch/codec --recogniser runs/s3_scratch/recogniser.safetensors
    python benchmarks/quality/text_lms.py --data MANIFEST --uslm runs/uslm_mini/lm --tokens mini [--out FOLDER]

Every --limit texts of the split are spoken in the voice of another recording of their speaker. Of Learnable-Speech's
model the tokens are read by the CTC head that the tokenizer was trained with; of USLM they are decoded and heard by
Moonshine. Rows: what is read or heard of the true tokens, of the model's, and of the model's for another text.

    cer, wer    character or word error, %, edits over characters or words of all
    seconds     of speech, of all; rtf: seconds of CPU (one thread) per second of speech
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vokens import audio, load
from vokens.evaluator_files import find_evaluator
from vokens.lm.sampling import SamplingParams
from vokens.models.moonshine import Moonshine
from vokens.models.s3tokenizer.recogniser import Recogniser
from vokens.text.transcripts import normalised_words, read, word_edits
from vokens.train.data import Clip, read_clips


def chosen(args: argparse.Namespace) -> list[tuple[Clip, Clip]]:
    """Recordings at equal distances in the order of their ids, each with another one of its speaker."""
    clips = sorted(read_clips(args.data, args.split, "en", with_text=True), key=lambda clip: clip.id)
    count = min(args.limit, len(clips))
    rows = [clips[int((i + 0.5) * len(clips) / count)] for i in range(count)]
    return [(clip, next(c for c in clips if c.speaker == clip.speaker and c.id != clip.id)) for clip in rows]


def show(name: str, wanted: list[str], found: list[str], seconds: float, cpu: float) -> None:
    """One row."""
    words = [(normalised_words(a), normalised_words(b)) for a, b in zip(wanted, found, strict=True)]
    characters = [(list(" ".join(a)), list(" ".join(b))) for a, b in words]
    errors = [
        100 * sum(word_edits(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
        for pairs in (characters, words)
    ]
    speed = f"{cpu / seconds:8.2f}" if cpu else " " * 8
    print(f"{name:<24}{errors[0]:8.1f}{errors[1]:8.1f}{seconds:9.1f}{speed}")


def compare(
    pairs: list[tuple[Clip, Clip]],
    true: list[Tensor],
    speak: Callable[[Clip, Clip, torch.Generator], Tensor],
    understand: Callable[[list[Tensor], str], list[str]],
    rate: float,
) -> None:
    """The rows, by what makes tokens of a text and a voice, and what makes text of tokens."""
    texts = [clip.text or "" for clip, _ in pairs]
    start = time.process_time()
    said = [speak(clip, voice, torch.Generator().manual_seed(row)) for row, (clip, voice) in enumerate(pairs)]
    cpu, seconds = time.process_time() - start, sum(map(len, said)) / rate
    heard = understand(said, "said")
    print(f"{'':<24}{'cer':>8}{'wer':>8}{'seconds':>9}{'rtf':>8}")
    show("true tokens", texts, understand(true, "true"), sum(map(len, true)) / rate, 0.0)
    show("the model", texts, heard, seconds, cpu)
    show("against another's text", texts, heard[1:] + heard[:1], seconds, 0.0)
    for clip, words in zip(pairs, heard, strict=True):
        print(f"  {clip[0].text}\n    {words}")


def learnable(args: argparse.Namespace) -> None:
    """Learnable-Speech's model; the recogniser reads its tokens."""
    model, codec, recogniser = load(args.learnable), load(args.tokens), Recogniser.open(args.recogniser)
    pairs = chosen(args)

    def speak(clip: Clip, voice: Clip, generator: torch.Generator) -> Tensor:
        (ids,) = model.generate([clip.text], speaker=model.voice(voice.path), generator=generator)
        return ids

    @torch.inference_mode()
    def understand(rows: list[Tensor], _: str) -> list[str]:
        found = []
        for ids in rows:
            inside = torch.ones(1, len(ids), dtype=torch.bool)
            states = recogniser.expand(recogniser.quantizer.digits(ids)[None])
            scores = recogniser.ctc(recogniser.recognise(states, inside))
            best = scores.unflatten(-1, (recogniser.head.emissions, -1)).flatten(1, 2)[0].argmax(-1)
            found.append(read(best.tolist(), recogniser.head.alphabet))
        return found

    true = [codec.encode(clip.path).codes[0, 0] for clip, _ in pairs]
    compare(pairs, true, speak, understand, codec.frame_rate)


def uslm(args: argparse.Namespace) -> None:
    """USLM; Moonshine hears what the codec decodes."""
    model, codec = load(args.uslm), load(args.tokens)
    judge, pairs = Moonshine(find_evaluator("moonshine-tiny-en")), chosen(args)
    law = SamplingParams(top_p=args.top_p, repeats=2)
    true = [codec.encode(clip.path) for clip, _ in pairs]

    def speak(clip: Clip, voice: Clip, generator: torch.Generator) -> Tensor:
        prompt = codec.encode(voice.path) if args.prompt else None
        said = voice.text if args.prompt else ""
        found = model.generate(clip.text, prompt, said or "", sampling=law, generator=generator)
        return found.codes[0].T

    def understand(rows: list[Tensor], name: str) -> list[str]:
        found = []
        for (clip, _), codes in zip(pairs, rows, strict=True):
            count = torch.tensor([len(codes)])
            tokens = replace(
                true[0], codes=codes.T[None], lengths=count, num_samples=count * codec.hop_length
            )
            (wave,) = codec.decode(tokens)
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                audio.save(args.out / f"{clip.id.replace('/', '_')}_{name}.wav", wave, codec.sample_rate)
            found.append(judge.transcribe(audio.load(wave, 16000, source_rate=codec.sample_rate)[0]))
        return found

    compare(pairs, [tokens.codes[0].T for tokens in true], speak, understand, codec.frame_rate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--limit", type=int, default=10)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--learnable", help="folder of Learnable-Speech's model")
    kind.add_argument("--uslm", help="folder of USLM")
    parser.add_argument("--tokens", required=True, help="the codec whose tokens they speak")
    parser.add_argument("--recogniser", type=Path)
    parser.add_argument("--prompt", action="store_true", help="USLM continues the voice's recording")
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--out", type=Path, help="keep the waves here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    learnable(args) if args.learnable else uslm(args)


if __name__ == "__main__":
    main()
