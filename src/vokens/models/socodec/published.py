"""SoCodec as it is published: a folder with the analyzer, the vocoder and HuBERT, recognised by their tensors' names.

HuBERT may be fairseq's checkpoint, a folder in transformers' format, or inside the analyzer; it may be missing where
the codec only decodes.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vokens.checkpoint import State, read_state_dict
from vokens.errors import CheckpointError
from vokens.fairseq_file import read_fairseq_weights
from vokens.models.socodec.checkpoint import INSIDE, is_analyzer, is_vocoder

ANALYZER = "analyzer (socodec_16384x4_120ms_16khz_chinese.safetensors)"
VOCODER = "mel vocoder (mel_vocoder_80dim_10ms_16khz.safetensors)"
HUBERT = "HuBERT (chinese-hubert-large-fairseq-ckpt.pt, or a folder in transformers' format)"


def read_folder(folder: Path) -> tuple[str, tuple[State, State, State | None]] | None:
    """The analyzer's name, and weights of analyzer, vocoder and HuBERT (None without), as in their files, of a folder
    and the folders in it; None where there is neither analyzer nor vocoder.

    Raises CheckpointError for one of the two without the other, or files that cannot be read.
    """
    files = list(_files(folder))
    keys = {path: _keys(path) for path in files if path.suffix == ".safetensors"}
    analyzer = next((path for path in keys if is_analyzer(keys[path])), None)
    vocoder = next((path for path in keys if is_vocoder(keys[path])), None)
    if analyzer is None and vocoder is None:
        return None
    if analyzer is None or vocoder is None:
        missing, there = (ANALYZER, vocoder) if analyzer is None else (VOCODER, analyzer)
        raise CheckpointError(
            f"{folder} holds {there} but not SoCodec's {missing}: both are needed, and {HUBERT} to encode"
        )
    state = read_state_dict(analyzer)
    own = {name: value for name, value in state.items() if not name.startswith(INSIDE)}
    hubert = next((path for path in keys if path != analyzer and _is_hubert(keys[path])), None)
    weights = read_state_dict(hubert) if hubert else _inside(state) or _torch_hubert(files)
    return analyzer.stem, (own, read_state_dict(vocoder), weights)


def read_hubert(path: Path) -> State:
    """HuBERT's weights as in its file: fairseq's checkpoint, or transformers' file or folder.

    Raises CheckpointError where there is none.
    """
    files = list(_files(path)) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".safetensors" and _is_hubert(_keys(file)):
            state = read_state_dict(file)
            return _inside(state) or state
    state = _torch_hubert(files)
    if state is None:
        raise CheckpointError(f"{path} holds no HuBERT: {HUBERT} is accepted")
    return state


def _inside(state: State) -> State:
    """HuBERT's weights inside the analyzer's."""
    return {k.removeprefix(INSIDE): v for k, v in state.items() if k.startswith(INSIDE)}


def _files(folder: Path) -> Iterator[Path]:
    """Weight files of a folder, then of the folders in it."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        yield from sorted(path for path in place.iterdir() if path.suffix in (".safetensors", ".pt", ".bin"))


def _keys(path: Path) -> Collection[str]:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set(read_state_dict(path))  # says what is wrong with the file


def _is_hubert(keys: Collection[str]) -> bool:
    return any(key.endswith(("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias")) for key in keys)


def _torch_hubert(files: list[Path]) -> State | None:
    """The first torch file that holds a HuBERT: fairseq's checkpoint, or transformers' pytorch_model.bin."""
    for path in files:
        if path.suffix != ".safetensors":
            try:
                state = read_state_dict(path)
            except CheckpointError:
                state = read_fairseq_weights(path)
            if _is_hubert(state):
                return state
    return None
