"""Frames of mp3, aac (ADTS) and flac, by their headers: the length of a stream whose container does not state it.

Layouts as in ISO 11172-3 and 13818-3 (mp3, the Xing frame as LAME writes it), 13818-7 (ADTS), RFC 9639 (flac).
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from vokens.errors import AudioError

_LARGEST = 1441  # bytes of a frame of layer 3: a shorter gap between frames holds no decodable frame
_KBPS = {  # by MPEG version 1 or not, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits


class MpegFrame(NamedTuple):
    """Fields of the four bytes of a header."""

    length: int  # bytes
    info: int  # offset of the Xing or Info mark in a first frame
    kind: tuple[int, int, int, bool]  # version, layer, rate, mono: constant within a stream


@lru_cache(1 << 16)
def mpeg_frame(header: bytes) -> MpegFrame | None:
    """The frame of a four-byte header; None for other bytes and for free format."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    bits, hertz = 1000 * _KBPS[version == 3, layer][bitrate - 1], _RATES[version][rate]
    if layer == 1:
        length = 4 * (12 * bits // hertz + padding)
    else:
        length = (144 if layer == 2 or version == 3 else 72) * bits // hertz + padding
    mono = header[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return MpegFrame(length, 4 + side, (version, layer, hertz, mono))


def mpeg_streams(data: bytes, name: str) -> Iterator[tuple[bytes, int, int]]:
    """The streams of an mp3, each a header to prepend and a range of bytes.

    A stream ends where another Xing frame, another rate or another number of channels begins, and after the
    frames that its Xing frame counts. Raises AudioError for missing frames, and for bytes that are no frames.
    """
    for frames, end, named in _runs(data, name):
        start, audio = frames[0], frames[named:]
        count, size = _stated(data, start) if named else (None, None)
        if size == end - start:  # some writers count the Xing frame too
            count = len(audio)
        if count is not None and count > len(audio):
            raise AudioError(f"{name} is truncated: {len(audio)} of {count} mp3 frames are present")
        if size is not None and count is None and size > end - start:
            raise AudioError(f"{name} is truncated: {end - start} of {size} bytes of mp3 are present")
        if count is not None and count < len(audio):
            yield _headed(data, audio[:count], audio[count], start)
            audio, named = audio[count:], False
        if audio:
            yield _headed(data, audio, end, start if named else None)


def _runs(data: bytes, name: str) -> Iterator[tuple[list[int], int, bool]]:
    """Contiguous frames: their positions, the end of the last, and whether the first is a Xing frame."""
    named_at = {match.start() for match in re.finditer(rb"Xing|Info|VBRI", data)}
    frames: list[int] = []
    position, kind, named = 0, (0, 0, 0, False), False
    while position < len(data):
        frame = mpeg_frame(data[position : position + 4])
        another = frame is None or frame.kind != kind
        if frame is None or (another and frames and frame.kind[:2] != kind[:2]):
            following = _resume(data, position, frames[-1] + 4 if frames else position, name)
            if frames and following < position:
                position = frames.pop()  # another stream begins before the frame was whole
            if frames:
                yield frames, position, named
            frames, position = [], following
            continue
        begins = position + frame.info in named_at or position + 36 in named_at
        if frames and (begins or another):
            yield frames, position, named
            frames = []
        if not frames:
            kind, named = frame.kind, begins
        if position + frame.length > len(data):
            missing = f"{len(data) - position} of {frame.length} bytes of its last frame are present"
            raise AudioError(f"{name} is truncated: {missing}")
        frames.append(position)
        position += frame.length
    if frames:
        yield frames, position, named


def _resume(data: bytes, position: int, earliest: int, name: str) -> int:
    """Position of the next frames after tags, zeros or a damaged frame; the end of the data if there are none."""
    behind = behind_tag(data, position)
    if behind > position:
        return behind
    for match in re.finditer(rb"\xff[\xe0-\xff]|ID3|TAG|APETAGEX", data[earliest:]):
        following = earliest + match.start()
        frame = mpeg_frame(data[following : following + 4])
        if behind_tag(data, following) > following and following >= position:
            break
        if frame is not None:
            beyond = following + frame.length
            after = mpeg_frame(data[beyond : beyond + 4])
            if beyond == len(data) or (after is not None and after.kind == frame.kind):
                break
    else:
        following = len(data)
    if following - position > _LARGEST:
        raise AudioError(f"{name} is damaged: {following - position} bytes at byte {position} are no frames")
    return following


def behind_tag(data: bytes, position: int) -> int:
    """End of the ID3, APE or Lyrics3 tag, or of four zeros and more, at this byte; else the byte itself."""
    head = data[position : position + 32]
    if head[:3] == b"ID3" and len(head) > 10 and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return position + 10 + size + (10 if head[5] & 16 else 0)
    if head[:8] == b"APETAGEX":
        return position + 32 + (int.from_bytes(head[12:16], "little") if head[23] & 32 else 0)
    if head[:3] == b"TAG" and len(data) - position >= 128:
        return position + 128
    if head[:11] == b"LYRICSBEGIN" and (end := data.find(b"LYRICS200", position)) > 0:
        return end + 9
    zeros = re.compile(rb"\0{4,}").match(data, position)
    return zeros.end() if zeros else position


def _stated(data: bytes, start: int) -> tuple[int | None, int | None]:
    """Frames (without itself) and bytes that a Xing, Info or VBRI frame states."""
    frame = mpeg_frame(data[start : start + 4])
    assert frame is not None  # the caller has checked it
    if data[start + 36 : start + 40] == b"VBRI":
        return _word(data, start + 50), _word(data, start + 46)
    flags = _word(data, start + frame.info + 4)
    count = _word(data, start + frame.info + 8) if flags & 1 else None
    size = _word(data, start + frame.info + 8 + 4 * (flags & 1)) if flags & 2 else None
    return count or None, size or None


def _headed(data: bytes, frames: list[int], end: int, start: int | None) -> tuple[bytes, int, int]:
    """A stream with a Xing frame, that at `start` or a new one, which counts exactly these frames."""
    frame = mpeg_frame(data[frames[0] : frames[0] + 4])
    assert frame is not None
    if frame.kind[1] != 3:  # layers 1 and 2 have no Xing frame, and one bit rate
        return b"", frames[0], end
    if start is not None and data[start + 36 : start + 40] != b"VBRI" and _stated(data, start)[0]:
        head = bytearray(data[start : frames[0]])
    else:
        first = data[frames[0] : frames[0] + 4]
        header = bytes((0xFF, first[1] | 1, 0xE0 | first[2] & 0x0C, first[3]))  # no CRC, the highest bit rate
        head = bytearray(mpeg_frame(header).length)  # type: ignore[union-attr]
        head[:4], head[frame.info : frame.info + 8] = header, b"Info\0\0\0\3"
    flags = _word(head, frame.info + 4)
    head[frame.info + 8 : frame.info + 12] = len(frames).to_bytes(4, "big")
    if flags & 2:
        head[frame.info + 12 : frame.info + 16] = (len(head) + end - frames[0]).to_bytes(4, "big")
    return bytes(head), frames[0], end


def _word(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def check_adts(data: bytes, name: str) -> None:
    """Raise AudioError where the last frame of an ADTS stream is truncated."""
    position = 0
    while re.match(rb"\xff[\xf0\xf1\xf8\xf9]", data[position : position + 2]):
        position += max(7, int.from_bytes(data[position + 3 : position + 6], "big") >> 5 & 0x1FFF)
    if position > len(data):
        raise AudioError(f"{name} is truncated: {position - len(data)} bytes of its last frame are missing")


def flac_length(tail: bytes, block: int) -> int | None:
    """Number of samples of a flac by its last frame, from the last bytes of the file; None where it is incomplete.

    block: samples per frame, as STREAMINFO states them.
    """
    for match in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", tail))):
        frame = tail[match.start() :]
        header = _flac_header(frame[:16]) if len(frame) > 5 else None
        if header is not None and _crc(frame, 16, 0x8005) == 0:
            number, samples = header
            return number * (1 if frame[1] & 1 else block) + samples
    return None


def _flac_header(head: bytes) -> tuple[int, int] | None:
    """Number of a frame, or of its first sample, and its length in samples; None for other bytes."""
    code, rate = head[2] >> 4, head[2] & 15
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is coded as UTF-8 is
    following = max(0, ones - 1)
    at = 5 + following
    width = {6: 1, 7: 2}.get(code, 0)
    behind = at + width + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if code == 0 or ones in (1, 8) or len(head) <= behind or _crc(head[: behind + 1], 8, 7):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5:at]:
        number = number << 6 | byte & 63
    if width:
        return number, int.from_bytes(head[at : at + width], "big") + 1
    return number, 192 if code == 1 else 576 << code - 2 if code <= 5 else 256 << code - 8


@cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    def entry(value: int) -> int:
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        return value

    return tuple(map(entry, range(256)))


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """CRC of bytes that end in their own CRC: 0 where they are intact."""
    table, value, mask = _crc_table(bits, polynomial), 0, (1 << bits) - 1
    for byte in data:
        value = (value << 8 ^ table[value >> (bits - 8) ^ byte]) & mask
    return value
