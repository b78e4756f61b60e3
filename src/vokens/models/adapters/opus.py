"""Opus (RFC 6716) at a constant bitrate, by the system's libopus: the codec of today's calls, as a yardstick.

Frames of 60 ms, the longest that a packet can hold whole, cost the least at these rates. Constant bitrate makes
every packet equally long, so that its bytes are a column of codes; a varying one would save a little more.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from vokens import needs
from vokens.errors import ConfigError
from vokens.models.adapters.library import LibraryCodec

RATE, FRAME = 16000, 960  # Hz; samples, 60 ms
_AUDIO = 2049  # OPUS_APPLICATION_AUDIO: as close to the input as can be; opusenc's choice too
_SET_BITRATE, _SET_VBR, _SET_COMPLEXITY, _GET_LOOKAHEAD = 4002, 4006, 4010, 4027


@dataclass(frozen=True)
class OpusConfig:
    """kbps: kbit/s, 6 to 128; a packet has kbps * 7.5 bytes, rounded down."""

    kbps: float = 6.0

    def __post_init__(self) -> None:
        if not 6 <= self.kbps <= 128:
            raise ConfigError(f"kbps={self.kbps} was given: Opus works from 6 kbit/s; up to 128 is accepted")


class Opus(LibraryCodec):
    """`vokens.load("opus-6")`. Codes: the K bytes of each packet."""

    system = "opus"
    Config = OpusConfig

    def __init__(self, config: OpusConfig) -> None:
        super().__init__(config)
        self._library = _library()
        self.sample_rate, self.hop_length = RATE, FRAME
        self.codebook_sizes = (256,) * int(config.kbps * FRAME / RATE * 1000 / 8)
        self.delay = self._lookahead()

    def encode_row(self, wave: np.ndarray, frames: int) -> np.ndarray:
        encoder = self._encoder()
        size = self.num_codebooks
        packet = ctypes.create_string_buffer(size)
        codes = np.zeros((frames, size), np.int64)
        try:
            for index, frame in enumerate(wave.reshape(frames, FRAME)):
                # A packet is never longer than its buffer; fewer bytes would break the constant bitrate.
                written = self._library.opus_encode_float(encoder, _pointer(frame), FRAME, packet, size)
                if written != size:
                    raise ConfigError(
                        f"libopus wrote {written} bytes instead of {size} at {self.config.kbps} kbit/s"
                    )
                codes[index] = np.frombuffer(packet.raw, np.uint8)
        finally:
            self._library.opus_encoder_destroy(encoder)
        return codes.T

    def decode_row(self, codes: np.ndarray, first_codebook: int) -> np.ndarray:
        error = ctypes.c_int()
        decoder = ctypes.c_void_p(self._library.opus_decoder_create(RATE, 1, ctypes.byref(error)))
        wave = np.zeros((codes.shape[1], FRAME), np.float32)
        try:
            for packet, frame in zip(codes.T.astype(np.uint8), wave, strict=True):
                # What is no packet of this length (bytes that were changed) is heard as a lost one, as on a line.
                data = packet.tobytes()
                got = self._library.opus_decode_float(decoder, data, len(data), _pointer(frame), FRAME, 0)
                if got != FRAME:
                    self._library.opus_decode_float(decoder, None, 0, _pointer(frame), FRAME, 0)
        finally:
            self._library.opus_decoder_destroy(decoder)
        return wave.reshape(-1)

    def _encoder(self) -> ctypes.c_void_p:
        error = ctypes.c_int()
        encoder = ctypes.c_void_p(self._library.opus_encoder_create(RATE, 1, _AUDIO, ctypes.byref(error)))
        bits = self.num_codebooks * 8 * RATE // FRAME
        for request, value in ((_SET_BITRATE, bits), (_SET_VBR, 0), (_SET_COMPLEXITY, 10)):
            self._library.opus_encoder_ctl(encoder, request, ctypes.c_int(value))
        return encoder

    def _lookahead(self) -> int:
        encoder, samples = self._encoder(), ctypes.c_int()
        self._library.opus_encoder_ctl(encoder, _GET_LOOKAHEAD, ctypes.byref(samples))
        self._library.opus_encoder_destroy(encoder)
        return samples.value


@cache
def _library() -> Any:
    needs.check("opus")
    library = ctypes.CDLL(needs.library("opus"))
    library.opus_encoder_create.restype = library.opus_decoder_create.restype = ctypes.c_void_p
    return library


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


__all__ = ["Opus", "OpusConfig"]
