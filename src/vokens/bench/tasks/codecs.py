"""Measured codecs: labels, loading, and tokens cached in the folder of the results."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from vokens.audio import load, resample
from vokens.bench.metrics import SAMPLE_RATE, fit_length
from vokens.bench.options import Measure
from vokens.bench.results import Results, Row
from vokens.data.items import Clip
from vokens.models.codec import Codec
from vokens.text.files import read_json
from vokens.tokens import Tokens


def labels(options: Measure) -> dict[str, str]:
    """Map labels of the chosen models to sources of `vokens.load`; a label is a folder's name or the text given."""
    names = options.model_names()
    owns = [_own_name(name) for name in names]
    return {name if owns.count(own) > 1 else own: name for name, own in zip(names, owns, strict=True)}


def open_codec(source: str, options: Measure, dtype: str = "float32") -> Codec:
    """The codec on the chosen device. Raises CheckpointError for models that do not encode audio."""
    torch.set_num_threads(options.threads)
    return Codec.from_pretrained(source, device=options.device, dtype=dtype)


def tokens_of(codec: Codec, label: str, item: Clip, wave: np.ndarray, options: Measure) -> Tokens:
    """Tokens of a wave (T,) at the codec's rate: from the folder of results, else encoded and saved there."""
    path = token_path(options, label, item)
    if path.is_file():
        tokens = Tokens.load(path)
        if tokens.fingerprint == codec.fingerprint:
            return tokens
    return save_tokens(codec.encode([wave], sample_rate=codec.sample_rate), path)


def all_tokens(
    codec: Codec, label: str, items: Sequence[Clip], options: Measure, results: Results
) -> dict[str, Tokens]:
    """Tokens of the usable recordings by id, as `tokens_of`."""
    row = Row(label, label, codec.fingerprint)

    def tokens(item: Clip) -> Tokens:
        results.get(row, item.id)  # raises before tokens of other weights are replaced
        return tokens_of(codec, label, item, load(item.path, codec.sample_rate)[0], options)

    return results.usable(items, tokens, f"{label} tokens")


def save_tokens(tokens: Tokens, path: Path) -> Tokens:
    """Save tokens below a folder that need not exist; returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.save(path)
    return tokens


def token_path(options: Measure, label: str, item: Clip) -> Path:
    """Path of a recording's tokens."""
    return options.out / "tokens" / quote(label, safe="") / f"{quote(item.id, safe='')}.vok"


def resynthesis(codec: Codec, tokens: Tokens, length: int) -> np.ndarray:
    """The decoded wave at 16 kHz, cut or padded to `length` samples."""
    return fit_length(resample(codec.decode(tokens)[0], codec.sample_rate, SAMPLE_RATE), length)


def _own_name(source: str) -> str:
    config = Path(source).expanduser() / "config.json"
    if not config.is_file():
        return source
    settings = read_json(config)
    return settings.get("name") or settings.get("system") or source
