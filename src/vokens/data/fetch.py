"""Audio of an utterance: bytes and local paths unchanged, URLs fetched as bytes."""

from pathlib import Path
from urllib.request import urlopen

from vokens.data.items import Utterance
from vokens.data.sources.addresses import filesystem, is_url
from vokens.errors import AudioError

TIMEOUT = 60.0  # seconds without a byte from a web server


def open_audio(utterance: Utterance) -> bytes | Path:
    """Open an utterance for `vokens.audio.load`: the bytes of an audio file, or its local path (which may not exist).

    http(s) is read by the standard library, all other URLs by fsspec. Raises AudioError for a URL that cannot
    be read, ConfigError where the package of its scheme is missing (s3fs, gcsfs, …).
    """
    if isinstance(utterance.audio, bytes):
        return utterance.audio
    if not is_url(utterance.audio):
        return Path(utterance.audio)
    url = utterance.audio
    web = url.startswith(("http://", "https://"))
    system, path = (None, url) if web else filesystem(url)
    try:
        if system is not None:
            return system.cat_file(path)
        with urlopen(url, timeout=TIMEOUT) as reply:
            return reply.read()
    except Exception as error:  # each store has its own exceptions; each means that this file is lost
        raise AudioError(f"{url} cannot be fetched: {type(error).__name__}: {error}") from error
