"""Codecs of others beside ours, behind one protocol: a 16 kHz wave in, the same span resynthesised out.

Codec2 and Opus run as programs (Debian codec2, opus-tools), Lyra v2 as its three published graphs. A delay
that a codec is known to add is taken off here: metrics that compare frames would otherwise measure the delay.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from vokens.audio import resample
from vokens.bench.judges import NotInstalled, find_judge
from vokens.errors import ConfigError, MissingExtra

SAMPLE_RATE = 16000


class Peer(Protocol):
    """A codec at one rate."""

    name: str

    def roundtrip(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        """The resynthesis (T,) float32 of a wave (T,), as long and at the same rate, and the bits it took."""
        ...


class Original:
    """No codec: what the judges say of the recording itself. Counted as 16-bit PCM."""

    name = "original"

    def roundtrip(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        return wave, 16 * len(wave)


class Codec2:
    """Codec2 (Rowe), a parametric 8 kHz vocoder; mode is its rate in bit/s, "3200" to "700C"."""

    _DELAY = (
        160  # samples at 8 kHz, 20 ms: STOI over trial shifts peaks there (.69 at 0, .90 at 20 ms, mode 3200)
    )

    def __init__(self, mode: str) -> None:
        self.name = f"codec2-{mode}"
        self._mode = mode
        self._programs = _programs("codec2", "c2enc", "c2dec")

    def roundtrip(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        narrow = np.pad(
            resample(wave, sample_rate, 8000), (0, self._DELAY + 320)
        )  # the last, partial frame too
        with tempfile.TemporaryDirectory() as folder:
            source, coded, decoded = (Path(folder) / name for name in ("a.raw", "a.c2", "b.raw"))
            source.write_bytes(_pcm(narrow))
            _call(self._programs[0], self._mode, str(source), str(coded))
            _call(self._programs[1], self._mode, str(coded), str(decoded))
            heard = np.frombuffer(decoded.read_bytes(), "<i2").astype(np.float32) / 32768
        # The mode is the rate. The file has more: frames filled up to bytes (52 bits to 56 in mode 1300).
        bits = round(int(self._mode.removesuffix("C")) * len(wave) / sample_rate)
        return _fit(resample(heard[self._DELAY :], 8000, sample_rate), len(wave)), bits


class Opus:
    """Opus (RFC 6716) by opusenc at a target rate; bits are those of its packets, without the container."""

    def __init__(self, kbps: float) -> None:
        self.name = f"opus-{kbps:g}"
        self._kbps = kbps
        self._programs = _programs("opus-tools", "opusenc", "opusdec")

    def roundtrip(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            source, coded, decoded = (str(Path(folder) / name) for name in ("a.wav", "a.opus", "b.wav"))
            soundfile.write(source, wave, sample_rate, subtype="PCM_16")
            options = ("--quiet", "--bitrate", f"{self._kbps:g}", "--framesize", "60", "--serial", "0")
            _call(self._programs[0], *options, source, coded)
            _call(self._programs[1], "--quiet", "--rate", str(sample_rate), coded, decoded)
            bits = 8 * ogg_payload(Path(coded).read_bytes())
            heard, _ = soundfile.read(decoded, dtype="float32")
        return _fit(heard, len(wave)), bits


class Lyra:
    """Lyra v2 (Google 2022, SoundStream): 64 features each 20 ms, quantised by stages of 4 bits."""

    _FRAME = 320  # samples

    def __init__(self, kbps: str, models: str | Path | None = None) -> None:
        stages = {"3.2": 16, "6": 30, "9.2": 46}
        if kbps not in stages:
            raise ConfigError(f"Lyra works at {', '.join(stages)} kbit/s, not at {kbps}")
        self.name = f"lyra-{kbps}"
        self._stages = stages[kbps]
        self._folder = find_judge("lyra-v2", models)
        quantizer = self._graph("quantizer")
        self._quantize = quantizer.get_signature_runner("encode")
        self._dequantize = quantizer.get_signature_runner("decode")

    def roundtrip(self, wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        if sample_rate != SAMPLE_RATE:
            raise ConfigError(f"the Lyra graphs run at 16 kHz, got a wave at {sample_rate} Hz")
        # The graphs keep their state from call to call, and reset_all_variables does not bring back that of a
        # fresh graph (features differ by up to 5.0 of a deviation of 5.6): new ones cost 3 ms.
        encode, decode = (_Frames(self._graph(name)) for name in ("soundstream_encoder", "lyragan"))
        frames = np.pad(wave, (0, -len(wave) % self._FRAME)).reshape(-1, 1, self._FRAME)
        heard = [decode(self._through_codebooks(encode(frame))) for frame in frames]
        return _fit(np.concatenate(heard, axis=-1)[0], len(wave)), 4 * self._stages * len(frames)

    def _through_codebooks(self, features: np.ndarray) -> np.ndarray:  # (1, 1, 64) -> (1, 1, 64)
        indices = self._quantize(input_frames=features, num_quantizers=np.int32(self._stages))["output_0"]
        return self._dequantize(encoding_indices=indices)["output_0"]

    def _graph(self, name: str) -> Any:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingExtra("ai-edge-litert", "eval", "Lyra") from error
        graph = Interpreter(str(self._folder / f"{name}.tflite"), num_threads=1)
        graph.allocate_tensors()
        return graph


class _Frames:
    """A graph of one input and one output, called frame by frame."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._input = graph.get_input_details()[0]["index"]
        self._output = graph.get_output_details()[0]["index"]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self._graph.set_tensor(self._input, frame)
        self._graph.invoke()
        return self._graph.get_tensor(self._output).copy()


def peer(name: str, models: str | Path | None = None) -> Peer:
    """The peer of that name: original, codec2-MODE, opus-KBPS, lyra-3.2, lyra-6 or lyra-9.2.

    Raises NotInstalled or MissingExtra when what it needs is not there, ConfigError for an unknown name.
    """
    family, _, rate = name.partition("-")
    if name == "original":
        return Original()
    if family == "codec2" and rate in ("3200", "2400", "1600", "1400", "1300", "1200", "700C"):
        return Codec2(rate)
    if family == "opus" and rate.replace(".", "", 1).isdigit():
        return Opus(float(rate))
    if family == "lyra" and rate:
        return Lyra(rate, models)
    raise ConfigError(
        f"unknown peer {name!r}: there are original, codec2-3200 (2400, 1600, 1400, 1300, 1200, 700C), "
        "opus-6 (any rate in kbit/s) and lyra-3.2 (6, 9.2)"
    )


def ogg_payload(data: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file: all pages but those of its two headers (RFC 7845)."""
    total, position, headers = 0, 0, 2
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            raise ConfigError(f"byte {position} of an Ogg file is not the begin of a page")
        lacing = data[
            position + 27 : position + 27 + data[position + 26]
        ]  # sizes of the segments of this page
        if headers:
            headers -= sum(size < 255 for size in lacing)  # a packet ends with a segment below 255 bytes
        else:
            total += sum(lacing)
        position += 27 + len(lacing) + sum(lacing)
    return total


def _programs(package: str, *names: str) -> list[str]:
    paths = [shutil.which(name) for name in names]
    found = [path for path in paths if path]
    if len(found) < len(names):
        raise NotInstalled(f"the programs {', '.join(names)} are not installed: apt-get install {package}")
    return found


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()[-300:]}")


def _pcm(wave: np.ndarray) -> bytes:
    return (np.clip(wave, -1, 1) * 32767).round().astype("<i2").tobytes()


def _fit(wave: np.ndarray, length: int) -> np.ndarray:
    return np.pad(wave[:length], (0, max(0, length - len(wave)))).astype(np.float32)
