"""S3Tokenizer run by ONNX Runtime instead of torch: what `export.py` writes, and the released graphs.

Log-mels, windows and merging are the codec's own; only the network is the graph's. Windows go through it one by one,
so that ids do not depend on the batch, whatever the kernels are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError, needs_extra
from vokens.models.pretrained import load
from vokens.models.s3tokenizer.config import S3TokenizerConfig
from vokens.models.s3tokenizer.export import METADATA
from vokens.models.s3tokenizer.model import S3Tokenizer

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxS3Tokenizer(S3Tokenizer):
    """An S3Tokenizer whose network is an ONNX Runtime session; its weights cannot be reached or saved."""

    def __init__(self, session: Any, config: S3TokenizerConfig, name: str, fingerprint: str) -> None:
        with torch.device("meta"):  # only the log-mel is kept
            super().__init__(config)
        del self.encoder, self.codebook
        self.mel.to_empty(device="cpu")
        self.name = name
        self._fingerprint = fingerprint
        self._session = session
        self._one_by_one = isinstance(session.get_inputs()[0].shape[0], int)  # the released graphs
        self.frames_per_forward = 1
        self.eval()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # of tensors that go in and out; the session may compute elsewhere

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def set_dtype(self, dtype: torch.dtype, exactness: Any = "plain") -> "OnnxS3Tokenizer":
        if dtype == torch.float32:
            return self
        raise ConfigError(f"{dtype} was given, but an ONNX graph's precision is fixed: open it with torch")

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        raise CheckpointError("ONNX Runtime does not return weights: open the file with torch, or copy it")

    def _encode(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids (B, T), and infinite margins."""
        sizes = torch.full((len(mel),), mel.shape[2]) if lengths is None else lengths
        if self._one_by_one:
            rows = [self._run(mel[row : row + 1, :, :size])[0] for row, size in enumerate(sizes.tolist())]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            ids = nn.functional.pad(ids, (0, -(-mel.shape[2] // self.config.hop) - ids.shape[1]))
        else:
            ids = self._run(mel, sizes)
        return ids, torch.full(ids.shape, torch.inf)

    def _run(self, mel: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Ids (B, T) int64 of log-mels (B, n_mels, F)."""
        if sizes is None:
            sizes = torch.tensor([mel.shape[2]])
        feats, length = (node.name for node in self._session.get_inputs())
        feeds = {feats: mel.float().contiguous().numpy(), length: sizes.to(torch.int32).numpy()}
        ids = self._session.run(None, feeds)[0]
        return torch.from_numpy(ids).long().reshape(len(mel), -1)


def open_onnx(path: str | Path, *, device: str = "cpu", config: Any = None) -> OnnxS3Tokenizer:
    """Open the codec of an ONNX file, computed by ONNX Runtime on "cpu" or "cuda", with torch's number of threads.

    config: as in `S3Tokenizer.from_onnx`, for released graphs; files of `export_onnx` hold theirs.
    Raises MissingExtra, ConfigError for other devices, CheckpointError for files that are no S3Tokenizer.
    """
    with needs_extra("onnxruntime", "onnx", 'backend="onnxruntime"'):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own exception types have no common base
        reason = str(error).splitlines()[0][:160]
        raise CheckpointError(f"ONNX Runtime cannot open {path}: {reason}") from error
    about = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if about is None:  # a released graph, whose nodes and weights torch reads
        codec = load(path, config=config)
        return OnnxS3Tokenizer(session, codec.config, codec.name, codec.fingerprint)
    known = json.loads(about)
    settings = build_config(S3TokenizerConfig, known["config"], str(path))
    return OnnxS3Tokenizer(session, settings, known["name"], known["fingerprint"])


def _providers(device: str, available: Sequence[str]) -> list[str]:
    kind = device.split(":")[0]
    if _PROVIDERS.get(kind) not in available:
        usable = [name for name, provider in _PROVIDERS.items() if provider in available]
        raise ConfigError(f"device={device!r} was given: ONNX Runtime has {', '.join(usable)} here")
    return [_PROVIDERS[kind]] if kind == "cpu" else [_PROVIDERS[kind], _PROVIDERS["cpu"]]
