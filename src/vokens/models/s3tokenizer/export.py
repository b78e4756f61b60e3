"""S3Tokenizer as one ONNX file: log-mels of any batch and length up to 30 s in, ids out, with torch.onnx.

Inputs and outputs are those of the released graphs, which take one recording at a time, so that code written for
them runs it; the file's metadata holds the codec's config for `runtime.py`.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vokens.atomic import atomic_write
from vokens.errors import needs_extra
from vokens.models.s3tokenizer.model import S3Tokenizer
from vokens.nn.masks import padding_mask

METADATA = "vokens"  # key of name, fingerprint and config
INPUTS = ("feats", "feats_length")
OUTPUTS = ("indices", "indices_length")
OPSET = 18  # ONNX Runtime 1.14 and later


class Graph(nn.Module):
    """Log-mels (B, n_mels, F), lengths (B,) int32 -> ids (B, T) int64, zero beyond each row's end, and counts (B,)."""

    def __init__(self, codec: S3Tokenizer) -> None:
        super().__init__()
        self.encoder, self.codebook, self.hop = codec.encoder, codec.codebook, codec.config.hop

    def forward(self, feats: Tensor, feats_length: Tensor) -> tuple[Tensor, Tensor]:
        ids, _ = self.codebook.encode(self.encoder(feats, feats_length))
        counts = (feats_length + (self.hop - 1)) // self.hop
        return ids * padding_mask(counts, ids.shape[1]), counts


@torch.no_grad()
def export_onnx(codec: S3Tokenizer, path: str | Path) -> Path:
    """Write the codec as an ONNX file with its weights inside, in float32; the file is whole or absent.

    Raises MissingExtra where the extra `onnx` is not installed, CheckpointError for a codec in int8.
    """
    codec.check_whole()
    with needs_extra("onnxscript", "onnx", "export to ONNX"):
        import onnxscript  # noqa: F401  torch.onnx needs it and says so only after minutes
    example = torch.zeros(2, codec.config.n_mels, 50, device=codec.device)
    lengths = torch.tensor([50, 31], dtype=torch.int32, device=codec.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts of torch.onnx about each other
        program: Any = torch.onnx.export(
            Graph(codec).eval(),
            (example, lengths),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={INPUTS[0]: {0: "batch", 2: "frames"}, INPUTS[1]: {0: "batch"}},
            verbose=False,
        )
    about = {"name": codec.name, "fingerprint": codec.fingerprint, "config": dataclasses.asdict(codec.config)}
    program.model.metadata_props[METADATA] = json.dumps(about)
    with atomic_write(path) as partial:
        program.save(str(partial), external_data=False)
    return Path(path)
