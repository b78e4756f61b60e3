"""S3Tokenizer as ONNX: the ids of torch for any batch and length, and a codec that ONNX Runtime computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, seeded, speechlike

import vokens
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
from vokens.models.s3tokenizer.export import INPUTS, OUTPUTS, export_onnx
from vokens.models.s3tokenizer.runtime import OnnxS3Tokenizer, open_onnx

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
RELEASED = Path(__file__).parents[2] / "golden/s3tokenizer"
# One of each pair here (vq, sinusoid; fsq, rotary, memory): an export takes 5 s of a core.
QUICK = ("speech_tokenizer_v1", "speech_tokenizer_v2_25hz")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RELEASES]


def tiny(name: str) -> S3Tokenizer:
    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 1, "layers": 1 if "v3" not in name else 2}
    if "v1" in name:
        sizes["codebook_size"] = 64
    codec = S3Tokenizer(replace(RELEASES[name], **sizes)).eval().requires_grad_(False)
    codec.name = name
    return codec


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[S3Tokenizer, Path]:
    codec = tiny(request.param)
    return codec, export_onnx(codec, tmp_path_factory.mktemp("onnx") / "x.onnx")


def test_the_ids_of_torch_for_any_batch_and_length(pair: tuple[S3Tokenizer, Path]) -> None:
    codec, path = pair
    assert [file.name for file in path.parent.iterdir()] == ["x.onnx"]  # weights are inside
    session = onnxruntime.InferenceSession(path)
    assert tuple(node.name for node in session.get_inputs()) == INPUTS
    assert tuple(node.name for node in session.get_outputs()) == OUTPUTS
    generator = seeded(1)
    for sizes in ([1], [2], [3], [4, 5], [100, 7, 1, 99], [801], [3000, 2]):
        mel = torch.randn(len(sizes), 128, max(sizes), generator=generator)
        lengths = torch.tensor(sizes, dtype=torch.int32)
        ids, counts = session.run(None, {"feats": mel.numpy(), "feats_length": lengths.numpy()})
        expected, expected_counts = codec.quantize(mel, lengths)
        assert np.array_equal(ids, expected.numpy()), sizes
        assert np.array_equal(counts, expected_counts.numpy())


def test_a_codec_that_onnx_runtime_computes(pair: tuple[S3Tokenizer, Path]) -> None:
    codec, path = pair
    ours = vokens.load(path, backend="onnxruntime")
    refused(CheckpointError, "onnxruntime", vokens.load, path)
    waves = [speechlike(n, seed=n) for n in (1, 400, 16001, 31 * 16000)]  # the last in two windows
    found, expected = ours.encode(waves, 16000), codec.encode(waves, 16000)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.lengths, expected.lengths)
    assert (found.model, found.fingerprint) == (expected.model, expected.fingerprint)
    mel, lengths = torch.randn(3, 128, 70), torch.tensor([70, 31, 1])
    for a, b in zip(ours.quantize(mel, lengths), codec.quantize(mel, lengths), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("file", ["onnx_v1.onnx", "onnx_v1_25hz.onnx", "onnx_v2.onnx", "onnx_v3.onnx"])
def test_released_graphs_run_as_they_are(file: str) -> None:
    case = json.loads((RELEASED / "config.json").read_text())["cases"]["onnx"]["files"][file]
    codec = vokens.load(RELEASED / file, config={"heads": 2}, backend="onnxruntime")
    twin = vokens.load(RELEASED / file, config={"heads": 2})
    mel = torch.from_numpy(np.random.RandomState(31).standard_normal((1, 4, 37)).astype(np.float32))
    assert codec.quantize(mel)[0][0].tolist() == case["codes"]
    rows, lengths = mel.repeat(3, 1, 1), torch.tensor([5, 30, 1])  # their batch is 1
    for a, b in zip(codec.quantize(rows, lengths), twin.quantize(rows, lengths), strict=True):
        assert torch.equal(a, b)
    assert (codec.frame_rate, codec.fingerprint) == (twin.frame_rate, twin.fingerprint)


def test_what_a_session_cannot_do_is_said(pair: tuple[S3Tokenizer, Path], tmp_path: Path) -> None:
    ours = open_onnx(pair[1])
    assert isinstance(ours.set_dtype(torch.float32), OnnxS3Tokenizer)
    refused(ConfigError, "precision", ours.set_dtype, torch.bfloat16)
    refused(CheckpointError, "weights", ours.save_pretrained, tmp_path)
    refused(ConfigError, "cpu", open_onnx, pair[1], device="tpu")
    refused(CheckpointError, r"no \.onnx file", vokens.load, tmp_path, backend="onnxruntime")
    refused(ConfigError, "backend='jax'", vokens.load, pair[1], backend="jax")
    (tmp_path / "no.onnx").write_bytes(pair[1].read_bytes()[:1000])
    refused(CheckpointError, "cannot open", open_onnx, tmp_path / "no.onnx")
