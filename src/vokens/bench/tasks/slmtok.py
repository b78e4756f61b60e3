"""SLMTokBench (Zhang et al. 2024, arXiv 2308.16692): text alignment of tokens, and preservation in the resynthesis.

Text alignment: an ASR probe on the tokens gives error rates, and mutual information by its likelihoods; one line per
range of codebooks. Preservation: words and voice of the resynthesis; one line per recording.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vokens.audio import duration, load
from vokens.bench.evaluators import RATE, Likeness
from vokens.bench.options import SlmTok, codebook_ranges
from vokens.bench.report.definitions import metric
from vokens.bench.report.table import Line
from vokens.bench.results import Results, Row
from vokens.bench.tasks.codecs import all_tokens, labels, open_codec, resynthesis, tokens_of
from vokens.bench.tasks.information import KneserNey, barber_agakov, draw_others, vclub
from vokens.bench.tasks.items import NoRecordings, find_items, spaced
from vokens.bench.tasks.probe import ALPHABET, fits, log_likelihoods, train_probe, transcribe
from vokens.data.items import Clip
from vokens.errors import NotInstalled
from vokens.evaluator_files import FILES, lacking
from vokens.models.codec import Codec
from vokens.text.transcripts import spell, word_edits
from vokens.tokens import Tokens

PRIOR_ORDER = 6  # of the character model, the prior of texts
_END = 0  # end-of-text symbol of that model
Read = tuple[Tokens, list[list[int]]]  # tokens of recordings, and their texts as symbols


@dataclass(frozen=True)
class Spoken:
    """Recordings with texts as symbols of the probe's alphabet; others: those with other characters."""

    items: list[Clip]
    texts: list[list[int]]
    others: list[Clip]


def run(options: SlmTok) -> int:
    """Measure and write the results; returns 1 if some recordings could not be used."""
    names = ("train_split", "train_hours", "probe_steps", "probe_seconds", "probe_width", "pairs")
    chosen = {name: getattr(options, name) for name in (*names, "recogniser", "speaker")}
    results = Results(options.measured(), "slmtok", **chosen)
    test = spoken(find_items(options.measured()))
    train = spoken(_train_items(options, results)) if options.probe_steps else Spoken([], [], [])
    evaluators = [name for name in (options.recogniser, options.speaker) if name in FILES]
    if absent := lacking(evaluators, options.evaluators):
        if not options.probe_steps:
            raise NotInstalled(absent)
        options = replace(options, resynthesised=0)
    rows: list[Line] = []
    with results:
        if absent:
            results.leave_out({"the resynthesis": absent})
        if other := len(test.others) + len(train.others):
            characters = f"their texts need other characters than {ALPHABET!r} and punctuation"
            results.leave_out({f"{other} recordings": characters})
        output = spaced(test.items, options.resynthesised)
        if output:
            row = Row("original", "original")
            lines = results.measure(row, output, partial(preserved, options, lambda item, wave: wave))
            rows.append(_row(row, lines, None, options))
        for label, source in labels(options).items():
            codec = open_codec(source, options)
            if output and not codec.decodes:
                results.leave_out({f"{label}: resynthesis": "it has no decoder"})
            count = codec.num_codebooks
            for part, span in codebook_ranges(options.codebooks, count).items():
                name = label if count == 1 else f"{label} {part}"
                row, probed, lines = Row(name, label, codec.fingerprint), None, []
                if options.probe_steps:
                    probed = _probe(results, row, codec, span, train, test, options)
                    results.leave_out(_left_out(name, probed))
                if output and codec.decodes:
                    say = partial(_say, codec, label, span, options)
                    lines = results.measure(row, output, partial(preserved, options, say))
                rows.append(_row(row, lines, probed, options))
        return results.finish(rows)


def spoken(items: Sequence[Clip]) -> Spoken:
    """Split recordings by whether the alphabet covers their texts. Raises ConfigError where it covers none."""
    texts = [spell(item.text or "", ALPHABET) for item in items]
    pairs = [(item, text) for item, text in zip(items, texts, strict=True) if text is not None]
    if not pairs:
        raise NoRecordings(
            f"none of {len(items)} texts is spelled with only {ALPHABET!r} and punctuation: "
            "SLMTokBench is defined for English"
        )
    others = [item for item, text in zip(items, texts, strict=True) if text is None]
    return Spoken([item for item, _ in pairs], [text for _, text in pairs], others)


def _train_items(options: SlmTok, results: Results) -> list[Clip]:
    """Training recordings, about train_hours of them."""
    try:
        items = find_items(options.trained_on())
    except NoRecordings as error:
        raise NoRecordings(
            f"slmtok trains a recogniser, on transcribed recordings: give a manifest that has them as --data, "
            f"its split as --train-split, or --probe-steps 0. {error}"
        ) from error
    seconds = results.usable(items, lambda item: duration(item.path), "lengths")
    share = min(1.0, 3600 * options.train_hours / max(sum(seconds.values()), 1e-9))
    return spaced([item for item in items if item.id in seconds], max(1, round(len(seconds) * share)))


def _probe(
    results: Results,
    row: Row,
    codec: Codec,
    span: tuple[int, int],
    train: Spoken,
    test: Spoken,
    options: SlmTok,
) -> Line:
    """The line of a probe of some codebooks."""
    ids = "|".join(item.id for item in (*train.items, *test.items))
    name = f"probe of {len(train.items)} and {len(test.items)} recordings, {zlib.crc32(ids.encode()):08x}"
    known = results.get(row, name)
    if known is not None:
        return known
    parts = [_tokens(codec, row.model, part, options, results) for part in (train, test)]
    learnt, output = ((tokens.select(*span), texts) for tokens, texts in parts)
    return results.add(row, name, **alignment(learnt, output, options, row.label))


def alignment(train: Read, test: Read, options: SlmTok, title: str = "") -> Line:
    """Text alignment of tokens, measured on `test` with a probe and a character model trained on `train`.

    Per test recording: characters and words with the probe's edits; ln q(text | tokens) of its own text and the mean
    over negative texts (per text and per character); ln p(text) of the character model; all in nats. impossible: share
    of negative texts that do not fit the recording, which are left out. left_out: number of train and test recordings
    that are too short for their own texts.
    """
    (learnt, learnt_texts), (tokens, texts) = _fitting(*train), _fitting(*test)
    with tqdm(total=options.probe_steps, desc=f"{title} probe", unit="step", disable=None) as bar:
        probe = train_probe(learnt, learnt_texts, options, lambda step, loss: _show(bar, loss))
    output = transcribe(probe, tokens)
    said: list[str] = ["".join([ALPHABET[symbol - 1] for symbol in text]) for text in texts]
    matched = log_likelihoods(probe, tokens, texts)
    others = draw_others(len(tokens), options.pairs, torch.Generator().manual_seed(options.seed))
    shuffled = log_likelihoods(probe, tokens, texts, others)
    sizes = torch.tensor([len(text) for text in texts])
    prior = _prior(learnt_texts, texts)
    return {
        "seconds": [round(value, 3) for value in tokens.duration.tolist()],
        "characters": sizes.tolist(),
        "character_edits": [word_edits(list(a), list(b)) for a, b in zip(said, output, strict=True)],
        "words": [len(text.split()) for text in said],
        "word_edits": [word_edits(a.split(), b.split()) for a, b in zip(said, output, strict=True)],
        "likelihood": matched.tolist(),
        "prior": prior.tolist(),
        "vclub": vclub(matched, shuffled).tolist(),
        "vclub_per_character": vclub(matched / sizes, shuffled / sizes[others]).tolist(),
        "lower": barber_agakov(matched, prior).tolist(),
        "impossible": float((~shuffled.isfinite()).double().mean()),
        "left_out": [len(train[1]) - len(learnt), len(test[1]) - len(tokens)],
        "train_seconds": float(learnt.duration.sum()),
    }


def _show(bar: tqdm, loss: float) -> None:
    bar.set_postfix_str(f"{loss / math.log(2):.2f} bits per character", refresh=False)
    bar.update()


def _prior(train: list[list[int]], test: list[list[int]]) -> torch.Tensor:
    """(N,) float64: ln p of the test texts with end symbols, by a character model of the train texts."""
    model = KneserNey([[*text, _END] for text in train], 1 + len(ALPHABET), PRIOR_ORDER)
    bits = [float(model.bits([*text, _END]).sum()) for text in test]
    return -math.log(2) * torch.tensor(bits, dtype=torch.float64)


def _tokens(codec: Codec, label: str, part: Spoken, options: SlmTok, results: Results) -> Read:
    """Tokens and texts of the usable recordings. Raises NoRecordings where there are none."""
    tokens = all_tokens(codec, label, part.items, options, results)
    if not tokens:
        raise NoRecordings(f"none of {len(part.items)} recordings can be read: give others as --data")
    texts = [text for item, text in zip(part.items, part.texts, strict=True) if item.id in tokens]
    return Tokens.cat(list(tokens.values())), texts


def _fitting(tokens: Tokens, texts: list[list[int]]) -> Read:
    """The items whose text fits their CTC frames."""
    kept = [i for i, text in enumerate(texts) if fits(text, int(tokens.lengths[i]), tokens.frame_rate)]
    return Tokens.cat([tokens[i] for i in kept]), [texts[i] for i in kept]


def _left_out(row: str, probed: Line) -> dict[str, str]:
    """Notes on what a row leaves out."""
    share, (train, test) = probed["impossible"], probed["left_out"]
    notes = {}
    if share:
        notes[f"{row}: {100 * share:.1f} % of the pairs of vCLUB"] = "the text is too long for the recording"
    if train or test:
        notes[f"{row}: {train} recordings to train on, {test} to test"] = "too short for their texts"
    return notes


@lru_cache(1)
def _likeness(options: SlmTok) -> Likeness:
    return Likeness(options.recogniser, options.speaker, options.evaluators, options.device)


def preserved(options: SlmTok, say: Callable[[Clip, np.ndarray], np.ndarray], item: Clip) -> Line:
    """The line of a recording; say returns the resynthesis (T,) of a recording (T,), both at 16 kHz."""
    wave, _ = load(item.path, RATE)
    line = _likeness(options).measure(item.id, wave, say(item, wave), item.text)
    return {"seconds": len(wave) / RATE, **line}


def _say(
    codec: Codec, label: str, span: tuple[int, int], options: SlmTok, item: Clip, wave: np.ndarray
) -> np.ndarray:
    source, _ = load(item.path, codec.sample_rate)  # at the codec's rate
    tokens = tokens_of(codec, label, item, source, options).select(*span)
    return resynthesis(codec, tokens, len(wave))


def _row(row: Row, lines: Sequence[Line], probed: Line | None, options: SlmTok) -> Line:
    """A row of results: mutual information per recording and per character, errors as ratios of sums."""
    measures: dict[str, Any] = {}
    seconds = [line["seconds"] for line in lines]
    if probed is not None:
        seconds = probed["seconds"]
        characters, bit = probed["characters"], 1 / math.log(2)
        silent = [-value for value in probed["likelihood"]]
        unknown = [-value for value in probed["prior"]]
        measures |= {
            "mi-vclub": metric("mi-vclub", probed["vclub"]),
            "mi-vclub-character": metric("mi-vclub-character", probed["vclub_per_character"], scale=bit),
            "mi-lower": metric("mi-lower", probed["lower"]),
            "mi-lower-character": metric("mi-lower-character", probed["lower"], characters, scale=bit),
            "text-bits": metric("text-bits", unknown, characters, scale=bit),
            "probe-bits": metric("probe-bits", silent, characters, scale=bit),
            "probe-cer": metric("probe-cer", probed["character_edits"], characters, scale=100),
            "probe-wer": metric("probe-wer", probed["word_edits"], probed["words"], scale=100),
        }
    if lines:
        edits, words = ([line[key] for line in lines] for key in ("edits", "words"))
        voices = [line["speaker"] for line in lines]
        measures["wer"] = metric("wer", edits, words, scale=100, mode=f"{options.recogniser}, greedy")
        measures["speaker"] = metric("speaker", voices, mode=f"{options.speaker}, 16 kHz, cosine")
    return row.summary(len(seconds), sum(seconds), measures)
