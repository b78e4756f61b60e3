"""Download of one file over http(s), atomic and verified.

Files of the Hugging Face hub come through huggingface_hub, into its shared cache. Other files are
downloaded to `<name>.part`; an interrupted transfer, also of an earlier run, is resumed by a Range request. The file is
renamed after the sha256 check, so a file under its final name is verified.
"""

import hashlib
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from vokens._version import __version__
from vokens.errors import DownloadError, file_errors

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # in a row without progress
BACKOFF = 1.0  # seconds before the second attempt, doubled before each further one
_CHUNK = 1 << 16
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The transfer stopped for a temporary reason."""


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids all downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def hub_endpoint() -> str:
    """The Hugging Face hub, or the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_url(repo: str, filename: str, revision: str | None = None) -> str:
    """Address of a file of a model repository on the hub."""
    return f"{hub_endpoint()}/{repo}/resolve/{quote(revision or 'main', safe='')}/{quote(filename)}"


def hub_file(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """A file of the Hugging Face hub in huggingface_hub's cache (HF_HUB_CACHE, or `cache_dir`), fetched where missing.

    Its content is checked against `sha256`, else against the hub's hash of large files. Raises DownloadError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    url, local = hub_url(repo, filename, revision), local_files_only or offline()
    try:
        cached = hf_hub_download(
            repo,
            filename,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            endpoint=hub_endpoint(),
            local_files_only=local,
        )
    except LocalEntryNotFoundError as error:
        if local:
            raise DownloadError(_missing(f"{repo}/{filename}", url, local_files_only)) from None
        reason = _line(error.__cause__ or error)
        raise DownloadError(f"{url} could not be fetched: {reason}. Check the network and retry") from None
    except HfHubHTTPError as error:
        raise DownloadError(_explain(error.response.status_code, url)) from None
    except OSError as error:
        raise DownloadError(
            f"{url} could not be kept in huggingface_hub's cache: {_line(error)}; free some space or set HF_HOME to "
            "another folder"
        ) from None
    except Exception as error:  # huggingface_hub's http library differs between versions
        raise DownloadError(f"{url} could not be fetched: {_line(error)}. Check it and try again") from None
    kept = Path(cached).resolve()
    hashed = re.fullmatch("[0-9a-f]{64}", kept.name)  # the cache names large files by hash
    _verify(kept, sha256 or (kept.name if hashed else None), url)
    return kept


def download(
    url: str, target: str | os.PathLike[str], *, sha256: str | None = None, local_files_only: bool = False
) -> Path:
    """Download `url` to `target` and return it; does nothing where it exists.

    Several processes may request one target at once: one downloads, the others wait. Raises DownloadError.
    """
    target = Path(target)
    if target.exists():
        return target
    if local_files_only or offline():
        raise DownloadError(f"{_missing(str(target), url, local_files_only)}, or copy it there")
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url!r} is not an http(s) address: give https://...")
    with _locked(target):
        if not target.exists():
            partial = target.with_name(target.name + ".part")
            _tell(f"fetching {url}")
            _fetch_whole(url, partial)
            _verify(partial, sha256, url)
            os.replace(partial, target)
    return target


def cache_errors(folder: Path) -> AbstractContextManager[None]:
    """Errors of writing to a folder of the cache."""
    return file_errors(DownloadError, f"cannot write to {folder}", "; set VOKENS_CACHE to another folder")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    from huggingface_hub.utils import WeakFileLock

    made = [folder for folder in target.parents if not folder.exists()]  # the deepest first
    path = target.with_name(f".{target.name}.lock")
    with cache_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = WeakFileLock(path)
        lock.__enter__()
    try:
        yield
    finally:
        if made and not any(entry != path for entry in target.parent.iterdir()):  # nothing was downloaded
            path.unlink()
            for folder in made:
                folder.rmdir()
        lock.__exit__(None, None, None)


def _fetch_whole(url: str, partial: Path) -> None:
    """Download or resume until the file is complete."""
    failures, furthest = 0, _size(partial)
    while True:
        try:
            return _continue(url, partial)
        except _Interrupted as interruption:
            failures = 0 if _size(partial) > furthest else failures + 1
            furthest = max(furthest, _size(partial))
            if failures == ATTEMPTS:
                raise DownloadError(
                    f"{url} could not be fetched: {interruption}. Check the network; "
                    f"{_megabytes(_size(partial))} are kept, and it resumes there"
                ) from None
            pause = BACKOFF * 2**failures
            _tell(f"{interruption}: trying again in {pause:g} s")
            time.sleep(pause)


def _continue(url: str, partial: Path) -> None:
    """One request for the missing bytes."""
    offset = _size(partial)
    with _open(url, offset) as response:
        if not _agrees(response, offset):
            partial.unlink(missing_ok=True)
            raise _Interrupted("the partial file is of another file: it is downloaded again")
        if response.status != 416:
            start = offset if response.status == 206 else 0  # a server may ignore Range and send all
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            _check_space(partial, (total or 0) - start)
            _receive(response, partial, start, total)
            if total is not None and _size(partial) < total:
                raise _Interrupted(f"the connection closed after {_size(partial)} of {total} bytes")


def _agrees(response: HTTPResponse | HTTPError, offset: int) -> bool:
    """True if the response to a Range request starts at `offset`, or is 416: the file is complete."""
    sent = response.headers.get("Content-Range", "")
    if response.status == 206:
        return sent.startswith(f"bytes {offset}-")
    return response.status != 416 or sent == f"bytes */{offset}"


def _open(url: str, offset: int) -> HTTPResponse | HTTPError:
    """The response from `offset` on, or 416: nothing is left."""
    request = Request(url, headers={"User-Agent": f"vokens/{__version__}"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and offset:
            return error
        error.close()
        if error.code in _TRANSIENT:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(_explain(error.code, url)) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: the server's certificate is not trusted ({error.reason.verify_message}); "
                "point SSL_CERT_FILE to your certificates"
            ) from None
        raise _Interrupted(str(error.reason)) from error
    except (HTTPException, OSError) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _receive(response: HTTPResponse | HTTPError, partial: Path, start: int, total: int | None) -> None:
    from tqdm import tqdm

    shown: dict[str, Any] = {"desc": partial.stem, "unit": "B", "unit_scale": True, "leave": False}
    shown["disable"] = None  # on terminals only
    remedy = "; free some space (what is there is kept) or set VOKENS_CACHE to another disk"
    with (
        file_errors(DownloadError, f"cannot write {partial}", remedy),
        open(
            partial, "ab" if start else "wb", buffering=0
        ) as file,  # unbuffered, so that closing cannot fail
        tqdm(total=total, initial=start, **shown) as bar,
    ):
        while chunk := _next_chunk(response):
            bar.update(len(chunk))
            while chunk:
                chunk = chunk[file.write(chunk) :]


def _next_chunk(response: HTTPResponse | HTTPError) -> bytes:
    try:
        return response.read(_CHUNK)
    except (HTTPException, OSError) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _check_space(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise DownloadError(
            f"{partial.parent} has {_megabytes(free)} free and {_megabytes(needed)} are needed: free some "
            "space or set VOKENS_CACHE to another disk"
        )


def _verify(partial: Path, sha256: str | None, url: str) -> None:
    if sha256 is None:
        return
    with open(partial, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        partial.unlink()
        raise DownloadError(
            f"{url} arrived with sha256 {actual} instead of {sha256} and was removed: try again; if this "
            "repeats, the file at the source has changed"
        )


def _explain(code: int, url: str) -> str:
    if code in (401, 403):
        return (
            f"{url} may not be read ({code}): check its name; if it is private or gated, accept its "
            "conditions on the hub and log in with `hf auth login` or set HF_TOKEN"
        )
    if code in (404, 410):
        return f"{url} does not exist ({code}): check the name and the revision"
    return f"{url}: the server answered {code}: check the address, trying again will not help"


def _missing(what: str, url: str, local_files_only: bool) -> str:
    reason = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE is set"
    return f"{what} is missing and {reason}: fetch it once from {url}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _tell(text: str) -> None:
    print(f"vokens: {text}", file=sys.stderr)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
