"""The audio of an utterance, wherever it is: bytes as they are, a local path as it is, a URL as its bytes."""

from pathlib import Path
from urllib.request import urlopen

from vokens.data.items import Utterance
from vokens.data.sources.addresses import filesystem, is_url
from vokens.errors import AudioError

TIMEOUT = 60.0  # seconds without a byte of a web server


def open_audio(utterance: Utterance) -> bytes | Path:
    """Open an utterance for `vokens.audio.load`: the bytes of an audio file, or its local path (which may not exist).

    http(s) is read by the standard library, all other URLs by fsspec. Raises AudioError for a URL that does not
    give its file, ConfigError where the package of its scheme is missing (s3fs, gcsfs, …).
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
    except (
        Exception
    ) as error:  # each store has its own family of errors; any of them is the loss of this one file
        raise AudioError(f"{url} cannot be fetched: {type(error).__name__}: {error}") from error
