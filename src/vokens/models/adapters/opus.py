"""Opus (RFC 6716) at a constant bitrate, by the libopus in PyAV's wheel: the codec of today's calls, as a yardstick.

Frames of 60 ms, the longest that a packet can hold whole, cost the least at these rates. Constant bitrate makes
every packet equally long, so that its bytes are a column of codes; a varying one would save a little more.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vokens import needs
from vokens.audio.resample import resample
from vokens.errors import ConfigError
from vokens.models.adapters.library import LibraryCodec

RATE, FRAME = 16000, 960  # Hz; samples, 60 ms
_DECODED_RATE = 48000  # the one rate at which FFmpeg's decoder gives its samples


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
        needs.check("opus")
        self.sample_rate, self.hop_length = RATE, FRAME
        self.codebook_sizes = (256,) * int(config.kbps * FRAME / RATE * 1000 / 8)
        head = self._encoder().extradata  # OpusHead of RFC 7845: bytes 10 and 11 are its delay at 48 kHz
        self.delay = int.from_bytes(head[10:12], "little") * RATE // _DECODED_RATE

    def encode_row(self, wave: np.ndarray, frames: int) -> np.ndarray:
        import av

        encoder, packets = self._encoder(), []
        for index, samples in enumerate(wave.reshape(frames, 1, FRAME)):
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE, index * FRAME
            packets += encoder.encode(frame)
        codes = np.zeros((self.num_codebooks, frames), np.int64)
        for index, packet in enumerate(packets):  # fewer bytes would break the constant bitrate
            if packet.size != self.num_codebooks:
                raise ConfigError(
                    f"libopus wrote {packet.size} bytes instead of {self.num_codebooks} at {self.config.kbps} kbit/s"
                )
            codes[:, index] = np.frombuffer(packet, np.uint8)
        return codes

    def decode_row(self, codes: np.ndarray, first_codebook: int) -> np.ndarray:
        import av

        decoder = av.CodecContext.create("libopus", "r")
        decoder.sample_rate, decoder.layout = _DECODED_RATE, "mono"
        wave = np.zeros((codes.shape[1], FRAME * _DECODED_RATE // RATE), np.float32)
        for packet, samples in zip(codes.T.astype(np.uint8), wave, strict=True):
            try:
                pcm = [frame.to_ndarray() for frame in decoder.decode(av.Packet(packet.tobytes()))]
            except av.FFmpegError:
                continue  # bytes that were changed and are no packet: silence
            if len(pcm) == 1 and pcm[0].size == samples.size:
                samples[:] = pcm[0][0] / np.float32(32768)
        # At 48 kHz libopus is 1 or 2 samples earlier than it states at 12 to 24 kbit/s (measured), and 2 later below.
        return resample(np.pad(wave.reshape(-1), (1, 0))[:-1], _DECODED_RATE, RATE)

    def _encoder(self) -> Any:
        import av

        encoder = av.CodecContext.create("libopus", "w")
        encoder.sample_rate, encoder.layout, encoder.format = RATE, "mono", "flt"
        encoder.time_base, encoder.bit_rate = Fraction(1, RATE), self.num_codebooks * 8 * RATE // FRAME
        # audio: as close to the input as can be, opusenc's choice too.
        options = {"application": "audio", "vbr": "off", "frame_duration": "60"}
        encoder.options = options | {"compression_level": "10"}
        encoder.open()
        return encoder
