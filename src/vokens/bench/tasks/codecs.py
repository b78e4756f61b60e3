"""Measured codecs: labels, loading, and tokens cached in the folder of the results."""

from pathlib import Path
from urllib.parse import quote

import numpy as np

from vokens.bench.options import Measure
from vokens.data.items import Clip
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.text.files import read_json
from vokens.tokens import Tokens


def labels(options: Measure) -> dict[str, str]:
    """Map labels of the chosen models to sources of `vokens.load`; a label is a folder's name or the text given."""
    names = options.model_names()
    own_names = [_own_name(name) for name in names]
    return {
        name if own_names.count(own) > 1 else own: name for name, own in zip(names, own_names, strict=True)
    }


def open_codec(source: str, options: Measure, dtype: str = "float32") -> Codec:
    """The codec on the chosen device. Raises ConfigError for models that do not encode audio."""
    import torch

    import vokens

    torch.set_num_threads(options.threads)
    codec = vokens.load(source, device=options.device, dtype=dtype)
    if not isinstance(codec, Codec):
        raise ConfigError(f"{source} is a {type(codec).__name__}: only codecs are measured, give one")
    return codec


def tokens_of(codec: Codec, label: str, item: Clip, wave: np.ndarray, options: Measure) -> Tokens:
    """Tokens of a wave (T,) at the codec's rate: from the folder of results, else encoded and saved there."""
    path = token_path(options, label, item)
    if path.is_file():
        tokens = Tokens.load(path)
        if tokens.fingerprint == codec.fingerprint:
            return tokens
    tokens = codec.encode([wave], sample_rate=codec.sample_rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.save(path)
    return tokens


def token_path(options: Measure, label: str, item: Clip) -> Path:
    """Path of a recording's tokens."""
    return options.out / "tokens" / quote(label, safe="") / f"{quote(item.id, safe='')}.vok"


def _own_name(source: str) -> str:
    config = Path(source).expanduser() / "config.json"
    if not config.is_file():
        return source
    settings = read_json(config)
    return settings.get("name") or settings.get("system") or source
