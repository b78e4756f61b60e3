"""Lyra v2 (Google 2022, after SoundStream, arXiv 2107.03312): three published graphs, run by ai-edge-litert.

64 features each 20 ms, quantised by up to 46 residual stages of 16 entries. The graphs are kept as bytes among
the tensors, so that a saved folder holds the codec and the fingerprint names it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from vokens.errors import CheckpointError, ConfigError, needs_extra
from vokens.models.adapters.library import LibraryCodec

FRAME, STAGES, ENTRIES = 320, 46, 16  # samples at 16 kHz; most stages; of each
GRAPHS = {"soundstream_encoder": 1779200, "quantizer": 329012, "lyragan": 1475160}  # bytes of each .tflite


@dataclass(frozen=True)
class LyraConfig:
    """stages: of the quantizer, 1 to 46; published are 16, 30 and 46 (3.2, 6 and 9.2 kbit/s)."""

    stages: int = STAGES

    def __post_init__(self) -> None:
        if not 1 <= self.stages <= STAGES:
            raise ConfigError(f"stages={self.stages} was given: Lyra has 1 to {STAGES}")


class Lyra(LibraryCodec):
    """`vokens.load("lyra-3.2")`. Codes: one for each residual stage; fewer decode too."""

    system = "lyra"
    Config = LyraConfig
    packets = False

    def __init__(self, config: LyraConfig) -> None:
        super().__init__(config)
        self.sample_rate, self.hop_length = 16000, FRAME
        self.codebook_sizes = (ENTRIES,) * config.stages
        self._files: dict[str, bytes] = {}
        for name, size in GRAPHS.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.uint8))

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The three .tflite files as Google published them."""
        if not all((folder / f"{name}.tflite").is_file() for name in GRAPHS):
            return None
        codec = cls(config if isinstance(config, LyraConfig) else LyraConfig())
        for name, size in GRAPHS.items():
            data = (folder / f"{name}.tflite").read_bytes()
            if len(data) != size:
                raise CheckpointError(f"{folder / name}.tflite has {len(data)} bytes, the published {size}")
            getattr(codec, name).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return codec

    def encode_row(self, wave: np.ndarray, frames: int) -> np.ndarray:
        # The graphs keep a state from call to call, and reset_all_variables does not bring back that of a fresh
        # one (features differ by up to 5.0 of a deviation of 5.6): new ones cost 3 ms.
        encoder = _Frames(self._graph("soundstream_encoder"))
        quantizer = self._graph("quantizer").get_signature_runner("encode")
        stages = np.int32(self.config.stages)
        codes = np.zeros((self.config.stages, frames), np.int64)
        for index, frame in enumerate(wave.reshape(frames, 1, FRAME)):
            indices = quantizer(input_frames=encoder(frame), num_quantizers=stages)["output_0"]  # (46, 1, 1)
            codes[:, index] = indices[: self.config.stages, 0, 0]
        return codes

    def decode_row(self, codes: np.ndarray, first_codebook: int) -> np.ndarray:
        quantizer = self._graph("quantizer").get_signature_runner("decode")
        decoder = _Frames(self._graph("lyragan"))
        indices = np.full((STAGES, 1, 1), -1, np.int32)  # -1: a stage that adds nothing
        waves = np.zeros((codes.shape[1], FRAME), np.float32)
        for wave, column in zip(waves, codes.T, strict=True):
            indices[first_codebook : first_codebook + len(column), 0, 0] = column
            wave[:] = decoder(quantizer(encoding_indices=indices)["output_0"]).reshape(-1)
        return waves.reshape(-1)

    def _graph(self, name: str) -> Any:
        with needs_extra("ai-edge-litert", "eval", "Lyra"):
            from ai_edge_litert.interpreter import Interpreter
        if name not in self._files:  # the interpreter points into these bytes
            self._files[name] = getattr(self, name).cpu().numpy().tobytes()
        try:
            graph = Interpreter(model_content=self._files[name], num_threads=1)
        except ValueError as error:
            raise CheckpointError(f"{self.name} has no {name}.tflite: use vokens.load ({error})") from error
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
