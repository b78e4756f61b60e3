"""The streams of an audio file and where each one ends, read from the containers themselves.

Decoders trust the length that a header states, or estimate one: libsndfile reads a truncated w64 without a word, stops
after the first of two concatenated files, and guesses the length of an mp3 without its Xing frame. Here every
stream is bounded first, and a header that leaves its length open or states it wrongly is rewritten, so that a
decoder has nothing to guess. Bytes of audio that would be left out raise AudioError.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from math import prod
from typing import BinaryIO, NamedTuple

from vokens.audio.frames import behind_tag, check_adts, flac_length, mpeg_frame, mpeg_streams
from vokens.errors import AudioError

_SCAN = 1 << 20  # bytes per read when a file is searched
_BUFFER = 1 << 14  # bytes per read of a decoder
_LARGEST_FILE = 1 << 43  # bytes; damaged headers state larger sizes, which seek refuses
_UNKNOWN_SIZE = 0x7FFF0000  # writers to a pipe leave a size near 2^31 or 2^32


class Slice(io.RawIOBase):
    """A header followed by the bytes `start` to `end` of a file, as a file object.

    Each read seeks in the shared file first, so that several slices may be read alternately. Seeks before the start,
    which libsndfile tries in damaged files, go to the start.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, head: bytes = b"") -> None:
        super().__init__()
        self._file, self._start, self._head = file, start, head
        self.size = len(head) + end - start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = (0, self._position, self.size)[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        block = self._head[self._position : self._position + len(view)]
        if not block:
            self._file.seek(self._start + self._position - len(self._head))
            block = self._file.read(len(view))
        view[: len(block)] = block
        self._position += len(block)
        return len(block)


class _Chunked(NamedTuple):
    """A container of chunks, each a name and a size before its content."""

    header: int  # bytes before the first chunk
    entry: struct.Struct  # name and size of a chunk
    counted: int = 0  # bytes of the entry that its size includes
    align: int = 2  # chunks begin at multiples of this

    def next(self, body: int, length: int, start: int) -> int:
        """Position of the next chunk."""
        behind = body + max(0, length)
        return behind + -(behind - start) % self.align


_RIFF = _Chunked(12, struct.Struct("<4sI"))
_CHUNKED = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _Chunked(12, struct.Struct(">4sI")),
    b"FORM": _Chunked(12, struct.Struct(">4sI")),
    b"riff": _Chunked(40, struct.Struct("<16sQ"), 24, 8),  # Sony Wave64
    b"caff": _Chunked(8, struct.Struct(">4sQ"), align=1),
}
_SAMPLES = (b"data", b"SSND", b"BODY")
# Chunks that writers put after the samples; a damaged one need not fit into the file.
_BEHIND = re.compile(
    rb"LIST|list|id3 |ID3 |bext|iXML|cue |smpl|inst|fact|PEAK|afsp|_PMX|JUNK|FLLR|PAD |MARK|ANNO"
)
_TAG = re.compile(rb"ID3|TAG|APETAGEX|LYRICSBEGIN|\0{4}")
_PRINTABLE = re.compile(rb"[ -~]{4}")
_FLAC = b"fLaC\0\0\0\x22"  # its magic and the head of STREAMINFO, which comes first
_OGG = b"OggS\0\2" + bytes(8)  # the first page of a logical stream
_PAGE = 65307  # bytes of the largest Ogg page
_MP3_IN_WAV = b"\x55\0"  # the format tag of a wav whose data are mp3 frames
_MATROSKA = b"\x1aE\xdf\xa3"
_ASF = b"0&\xb2u\x8ef\xcf\x11"

_Piece = tuple[bytes, int, int]  # a stream: a header to prepend, and the range of bytes that follows


def streams(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The streams of a file in order, each as a file object to be read before the next is taken.

    Raises AudioError for a truncated stream, and for bytes after the last one that are no tags.
    """
    end = file.seek(0, io.SEEK_END)
    start = _behind_tags(file, 0, end)
    if start == end:
        raise AudioError(f"{name} is empty (0 bytes of audio in {end})")
    while start < end:
        find = _finder(_read(file, start, 16))
        pieces, behind = find(file, start, end, name) if find else ([(b"", start, end)], end)
        for head, first, last in pieces:
            part = Slice(file, first, last, head)
            yield io.BufferedReader(part, _BUFFER)
            if behind is None:  # the decoder has read at most this far past the last frame
                behind = _seek(file, _FLAC, max(start + 4, start + part.tell() - 4 * _BUFFER), end)
        start = _behind_tags(file, end if behind is None else behind, end)
        if start < end and not _finder(_read(file, start, 16)):
            raise AudioError(
                f"{name}: {end - start} bytes after the audio are neither audio nor a known tag: "
                f"cut the file after byte {start}, or convert it with ffmpeg"
            )


def _finder(head: bytes) -> Callable[..., tuple[list[_Piece], int | None]] | None:
    """The function that finds the bounds of a stream with this head, and the position after it."""
    if head[:4] in _CHUNKED:
        return _chunked
    if head[:1] == b"\xff" and mpeg_frame(head[:4]):
        return _mpeg
    if head[:2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"):
        return _adts
    if head[4:8] == b"ftyp":
        return _mp4
    finders = {b"fLaC": _flac, b"OggS": _ogg, b".snd": _au, b"NIST": _nist, _MATROSKA: _matroska}
    return (finders | {_ASF[:4]: _asf}).get(head[:4])


def _chunked(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    """wav, rf64, w64, aiff, caf."""
    kind = _CHUNKED[_read(file, start, 4)]
    position, tag, long = start + kind.header, b"", 0
    while True:
        entry = _read(file, position, kind.entry.size)
        if len(entry) < kind.entry.size:
            return [(b"", start, end)], end  # no samples: the decoder will say so
        chunk, size = kind.entry.unpack(entry)
        body, size = position + len(entry), size - kind.counted
        if chunk[:4] in _SAMPLES:
            break
        if chunk == b"fmt ":
            tag = _read(file, body, 2)
        elif chunk == b"ds64":
            long = int.from_bytes(_read(file, body + 8, 8), "little")
        position = kind.next(body, size, start)
    size = long if size == 0xFFFFFFFF and long else size
    there = end - body
    open_end = there < size and (size >= _UNKNOWN_SIZE if kind.entry.size == 8 else size >> 62)
    if open_end or (size <= 0 and there and not _is_chunk(file, kind, body, end)):
        last = _before_chunks(file, kind, body, end)
        head = bytearray(_read(file, start, body - start))
        largest = (1 << 8 * (kind.entry.size - len(chunk))) - 1
        kind.entry.pack_into(head, position - start, chunk, min(last - body + kind.counted, largest))
        pieces, behind = [(bytes(head), body, last)], end
    elif there < size:
        raise AudioError(f"{name} is truncated: {there} of {size} bytes of samples are present")
    else:
        last, behind = body + size, _behind_chunks(file, kind, body, size, start, end)
        pieces = [(b"", start, behind)]
    if tag == _MP3_IN_WAV:
        pieces, _ = _mpeg(file, body, last, name)
    return pieces, behind


def _is_chunk(file: BinaryIO, kind: _Chunked, position: int, end: int) -> bool:
    entry = _read(file, position, kind.entry.size)
    if len(entry) < kind.entry.size:
        return False
    chunk, size = kind.entry.unpack(entry)
    known = _BEHIND.match(chunk) is not None
    return known or bool(_PRINTABLE.match(chunk) and chunk[:4] not in _SAMPLES and position + size <= end)


def _behind_chunks(file: BinaryIO, kind: _Chunked, body: int, size: int, start: int, end: int) -> int:
    """End of the chunks after the samples."""
    position = kind.next(body, size, start)
    if not _is_chunk(file, kind, position, end) and _is_chunk(file, kind, body + size, end):
        position = body + size  # the writer omitted the padding byte
    while position < end and _is_chunk(file, kind, position, end):
        chunk, size = kind.entry.unpack(_read(file, position, kind.entry.size))
        if _finder(chunk) is _chunked:
            break  # another file
        position = kind.next(position + kind.entry.size, size - kind.counted, start)
    return end if end - position < kind.entry.size else position


def _before_chunks(file: BinaryIO, kind: _Chunked, body: int, end: int) -> int:
    """End of samples of unknown length: where known chunks begin that reach exactly to the end."""
    first = max(body, end - _SCAN)
    tail = _read(file, first, end - first)
    last = len(tail)
    for match in reversed(list(_BEHIND.finditer(tail))):
        entry = tail[match.start() : match.start() + kind.entry.size]
        if len(entry) == kind.entry.size:
            size = kind.entry.unpack(entry)[1] - kind.counted
            if last - (match.start() + len(entry) + size) in range(kind.align):
                last = match.start()
    return first + last


def _au(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    offset, size = struct.unpack(">II", _read(file, start + 4, 8).ljust(8, b"\0"))
    body = start + offset
    if size not in (0, 0xFFFFFFFF):
        return _whole(start, body + size, end, name)
    head = _read(file, start, 8) + struct.pack(">I", max(0, end - body))
    return [(head, start + 12, end)], end


def _nist(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    head = _read(file, start, 1024)
    keys = (b"sample_count", b"channel_count", b"sample_n_bytes")
    stated = [re.search(rb"%b -i (\d+)" % key, head) for key in keys]
    if not head[8:16].strip().isdigit():
        return [(b"", start, end)], end
    if not all(stated):
        return [(b"", start, end)], end
    size = prod(int(match[1]) for match in stated if match)
    return _whole(start, start + int(head[8:16]) + size, end, name)


def _mpeg(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    end = _before_tags(file, start, end)
    bounds = mpeg_streams(_read(file, start, end - start), name)
    return [(head, start + first, start + last) for head, first, last in bounds], end


def _adts(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    end = _before_tags(file, start, end)
    check_adts(_read(file, start, end - start), name)
    return [(b"", start, end)], end


def _flac(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int | None]:
    """Check the sample count of STREAMINFO, which may be 0 or too low, against the number of the last frame.

    Where they agree, another stream of the same length may still follow. A search of all bytes would take a tenth of
    the time of decoding, so the end is left open (None) until the decoder has stopped.
    """
    head = bytearray(_read(file, start, 42))
    rate, stated = int.from_bytes(head[18:21], "big") >> 4, int.from_bytes(head[21:26], "big") & (1 << 36) - 1
    if not rate:
        return [(b"", start, end)], end  # no flac: the decoder will say so
    last = _before_tags(file, start, end)
    if stated and _flac_length(file, start, last) == stated:
        return [(b"", start, last)], None
    behind = _seek(file, _FLAC, start + 4, end)
    last = _before_tags(file, start, behind)
    count = _flac_length(file, start, last)
    if count is None or count < stated:
        there = "its last frame is damaged" if count is None else f"{count} of {stated} samples are present"
        raise AudioError(f"{name} is truncated: {there}")
    head[21:26] = (int.from_bytes(head[21:26], "big") - stated + count).to_bytes(5, "big")
    return [(bytes(head), start + 42, last)], behind


def _flac_length(file: BinaryIO, start: int, last: int) -> int | None:
    head = _read(file, start, 42)
    block, largest = int.from_bytes(head[10:12], "big"), int.from_bytes(head[15:18], "big")
    tail = min(last - start, max(largest, 1 << 14) if largest else _SCAN)
    return flac_length(_read(file, last - tail, tail), block)


def _ogg(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    """One link of a chained file: the first pages of its logical streams, then all pages up to the next link."""
    position = start
    while _read(file, position, 6)[:6] == _OGG[:6]:
        position = _behind_page(_read(file, position, _PAGE), position)
    behind = _seek(file, _OGG, position, end)
    last = _before_tags(file, start, behind)
    first = max(start, last - _PAGE)
    tail = _read(file, first, last - first)
    page = tail.rfind(b"OggS")
    if page < 0 or _behind_page(tail[page:], first + page) != last:
        raise AudioError(f"{name} is truncated: the Ogg page from byte {first + max(page, 0)} is incomplete")
    return [(b"", start, last)], behind


def _behind_page(page: bytes, position: int) -> int:
    """End of the page that begins at `position`."""
    segments = page[26] if len(page) > 26 else 255
    return position + 27 + segments + sum(page[27 : 27 + segments])


def _mp4(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    position = start
    while position < end:
        entry = _read(file, position, 16)
        size = int.from_bytes(entry[:4], "big")
        size = int.from_bytes(entry[8:], "big") if size == 1 else size
        if (entry[4:8] == b"ftyp" and position > start) or not _PRINTABLE.match(entry[4:8]):
            break  # another file, or no box
        position = position + size if size else end
    return _whole(start, position, end, name)


def _matroska(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    """webm: a header, then a segment of a stated size, or of an open one, as browsers record."""
    position = start
    for element in (4, 4):  # both have names of four bytes
        entry = _read(file, position + element, 8)
        width = 9 - entry[0].bit_length() if entry and entry[0] else 8
        size = int.from_bytes(entry[:width], "big") & (1 << 7 * width) - 1
        if size == (1 << 7 * width) - 1:
            behind = _seek(file, _MATROSKA, position + element, end)
            return [(b"", start, behind)], behind
        position += element + width + size
    return _whole(start, position, end, name)


def _asf(file: BinaryIO, start: int, end: int, name: str) -> tuple[list[_Piece], int]:
    """wma: objects, each a name of 16 bytes and its size."""
    position = start
    while position + 24 <= end:
        size = int.from_bytes(_read(file, position + 16, 8), "little")
        if not 24 <= size < 1 << 62:
            position = end  # of open length
        elif position > start and _read(file, position, 8) == _ASF:
            break
        position += size if position < end else 0
    return _whole(start, position, end, name)


def _whole(start: int, behind: int, end: int, name: str) -> tuple[list[_Piece], int]:
    """Bounds of a stream that states that it ends at `behind`, in a file that ends at `end`."""
    if behind > end:
        raise AudioError(f"{name} is truncated: {behind - end} of its bytes are missing")
    return [(b"", start, behind)], behind


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    if position > _LARGEST_FILE:
        return b""
    file.seek(position)
    return file.read(count)


def _seek(file: BinaryIO, needle: bytes, position: int, end: int) -> int:
    """Position of the next such bytes; `end` if there are none."""
    while position < end:
        offset = _read(file, position, _SCAN + len(needle) - 1).find(needle)
        if offset >= 0:
            return min(position + offset, end)
        position += _SCAN
    return end


def _behind_tags(file: BinaryIO, position: int, end: int) -> int:
    """End of the tags and rows of zeros that begin here."""
    while position < end and _TAG.match(_read(file, position, 16)):
        behind = behind_tag(_read(file, position, min(_SCAN, end - position)), 0)
        if behind == 0:
            break
        position += behind
    return min(position, end)


def _before_tags(file: BinaryIO, start: int, end: int) -> int:
    """Start of the ID3v1, Lyrics3 and APE tags that end at `end`."""
    while end > start:
        tail = _read(file, max(start, end - 128), min(128, end - start))
        if len(tail) == 128 and tail[:3] == b"TAG":
            size = 128
        elif tail[-32:-24] == b"APETAGEX":
            size = int.from_bytes(tail[-20:-16], "little") + (32 if tail[-9] & 128 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            size = int(tail[-15:-9]) + 15
        else:
            break
        end -= size
    return max(start, end)
