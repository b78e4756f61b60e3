"""Learnable-Speech's data files as training data: `X.wav` with `X.txt`, `X_fsq.pt` and `X_latent2x.pt` beside it,
listed in a `train_index.json` or a `data.list` (primepake/learnable-speech 2453af9).

Nothing is unpickled but tensors and plain values. Tokens and latents go once into the cache of the run.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.audio_files import find_files
from vokens.errors import ConfigError, TokensError
from vokens.text import files as text_files
from vokens.train.config import DataConfig
from vokens.train.data import Clip
from vokens.train.rows import Rows, cached_rows

LISTS = (".list", ".json")  # suffixes of a list of sources and of an index
LATENTS = ("_latent2x.pt", "_latent.pt")  # the second is the older name
TOKEN_RATE = 25.0  # of S3Tokenizer v2, Hz
NO_SPEAKER = "default"  # speaker in an index of a file whose name has none


@dataclass(frozen=True)
class Item:
    """A recording and the files beside it, by the names of the index."""

    utt: str
    spk: str
    wav: Path
    text_path: Path
    token_path: Path
    latent_path: Path

    @property
    def files(self) -> tuple[Path, Path, Path, Path]:
        return self.wav, self.text_path, self.token_path, self.latent_path

    @property
    def missing(self) -> list[Path]:
        """Files that do not exist or are empty."""
        return [path for path in self.files if not path.is_file() or not path.stat().st_size]


def is_published(source: str | Path) -> bool:
    """Whether a source of training data is an index or a list of sources; a *.json of json lines is a manifest."""
    path = Path(source)
    if path.suffix != ".json" or not path.is_file():
        return path.suffix in LISTS
    first = next(text_files.iter_lines(path), "")
    try:
        return "data" in json.loads(first)
    except ValueError:  # an object over several lines
        return True


def beside(wav: Path, utt: str = "") -> Item:
    """Item of a recording, its files named as the published scripts do. utt: an id in place of the file's name."""
    latents = [wav.with_name(wav.stem + ending) for ending in LATENTS]
    present = [path for path in latents if path.exists()]
    speaker = wav.stem.split("_")[0] if "_" in wav.stem else NO_SPEAKER
    return Item(
        utt or wav.stem,
        speaker,
        wav,
        wav.with_suffix(".txt"),
        wav.with_name(f"{wav.stem}_fsq.pt"),
        (present or latents)[0],
    )


def recordings(source: Path) -> list[Path]:
    """Audio files below a folder, in order, or those that a text file names, a path in a line; # begins a comment.

    Raises ConfigError for what is neither.
    """
    if source.is_dir():
        return find_files(source)
    if source.is_file():
        return [_near(line, source) for line in text_files.read_list(source)]
    raise ConfigError(f"{source} is neither a folder of recordings nor a file that lists them")


def read_items(source: str | Path) -> list[Item]:
    """The items of an index (*.json), of a list of sources, of a text file of recordings, or of a folder.

    A line of a list of sources is any of the others. Relative paths count from where the run was started, or from the
    file that holds them. Raises ConfigError for files of other contents.
    """
    source = Path(source)
    if source.suffix == ".list":
        if not source.is_file():
            raise ConfigError(f"{source} does not exist: a list of sources has an index.json in each line")
        return [item for line in text_files.read_list(source) for item in read_items(_near(line, source))]
    if source.suffix == ".json":
        return list(_indexed(source))
    return [beside(path) for path in recordings(source)]


def read_text(path: Path) -> str:
    """The text of an utterance: its lines without outer blanks, joined by nothing, as published."""
    return "".join(line.strip() for line in text_files.iter_lines(path))


def read_tokens(path: Path, codebook_size: int = 6561) -> np.ndarray:
    """Ids (L,) int32 of an `X_fsq.pt`, a tensor or a list. Raises TokensError."""
    content = _read(path)
    ids = torch.as_tensor(content) if isinstance(content, list) and content else content
    if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point() or not len(ids):
        raise TokensError(f"{path} holds no ids: one row of whole numbers is expected")
    if int(ids.min()) < 0 or int(ids.max()) >= codebook_size:
        raise TokensError(
            f"{path} holds ids from {int(ids.min())} to {int(ids.max())}, not of 0 ... {codebook_size - 1}"
        )
    return ids.to(torch.int32).numpy()


def read_latents(path: Path) -> tuple[np.ndarray, int]:
    """Latents (T, D) float32 of an `X_latent2x.pt`, and the sample rate of their audio. Raises TokensError."""
    content = _read(path)
    try:
        z, rate = content["z"], int(content["sample_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise TokensError(f"{path} holds no latents: a dict with z and sample_rate is expected") from error
    if not isinstance(z, Tensor) or z.dim() != 2 or not z.numel() or not bool(z.isfinite().all()):
        raise TokensError(f"{path}: z must be (D, T) finite numbers")
    return z.float().T.contiguous().numpy(), rate


def complete(items: list[Item], source: object) -> list[Item]:
    """The items that have all files; prints how many do not. Raises ConfigError where none has them."""
    whole, lacking = [item for item in items if not item.missing], [item for item in items if item.missing]
    first = f"{lacking[0].missing[0]} is missing or empty" if lacking else "it names no recording"
    if not whole:
        raise ConfigError(
            f"none of the {len(items)} utterances of {source} has audio, text, ids and latents: {first}; "
            "run extract_fsq and extract_dac_latents, and write a .txt for each recording"
        )
    if lacking:
        told = (
            f"{source}: {len(lacking)} of {len(items)} utterances lack files and are left out: {first}, ..."
        )
        print(told, file=sys.stderr)
    return whole


class PublishedFiles:
    """Utterances of an index or list that have all files.

    Attributes:
        items; clips: the same with their texts, as other sources have them. Speaker "default" becomes None.

    Raises ConfigError where none is complete, naming the first missing file.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, self.items = source, complete(read_items(source), source)
        self.clips = []
        for item in self.items:
            speaker = None if item.spk == NO_SPEAKER else item.spk
            self.clips.append(Clip(item.utt, item.wav, read_text(item.text_path), speaker=speaker))

    def tokens(self, data: DataConfig, codebook_size: int = 6561) -> Rows:
        """Ids (L, 1) of each utterance."""

        def ids(path: Path) -> np.ndarray:
            return read_tokens(path, codebook_size)[:, None]

        paths = [item.token_path for item in self.items]
        return cached_rows(data, f"fsq{codebook_size}", paths, ids, "reading tokens")

    def latents(self, data: DataConfig) -> Rows:
        """Latents (T, D) of each utterance, in half precision as those that training computes itself."""

        def z(path: Path) -> np.ndarray:
            return read_latents(path)[0].astype(np.float16)

        paths = [item.latent_path for item in self.items]
        return cached_rows(data, "latent", paths, z, "reading latents")

    @property
    def sample_rate(self) -> int:
        """Rate of the audio that the latents encode, Hz."""
        return read_latents(self.items[0].latent_path)[1]


def ratio_of(tokens: Rows, latents: Rows) -> int:
    """Latents per token, by the utterances' counts. Raises ConfigError where it is not a whole number."""
    counts, frames = np.diff(tokens.offsets), np.diff(latents.offsets)
    both = (counts > 0) & (frames > 0)
    mean = float(frames[both].sum() / counts[both].sum()) if both.any() else 0.0
    ratio = round(mean)
    if ratio < 1 or abs(mean - ratio) > 0.1 * ratio:
        raise ConfigError(
            f"there are {mean:.2f} latents to a token, not a whole number of them: ids and latents are of different "
            "audio, or of models that do not belong together"
        )
    return ratio


def _indexed(path: Path) -> Iterator[Item]:
    try:
        for row in text_files.read_json(path)["data"]:
            names = ("wav", "text_path", "token_path", "latent_path")
            wav, text, token, latent = (_near(row[name], path) for name in names)
            yield Item(str(row["utt"]), str(row.get("spk", NO_SPEAKER)), wav, text, token, latent)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no index ({error!r}): generate_json_index writes one, whose data are utterances"
        ) from error


def _near(path: str, file: Path) -> Path:
    """A path if it is absolute or exists, else relative to the folder of the file that names it."""
    plain = Path(path).expanduser()
    return plain if plain.is_absolute() or plain.exists() else file.parent / plain


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles and archives raise almost any type
        raise TokensError(f"{path} cannot be read as tensors and plain values ({error})") from error
