"""Real weights: OpenAI's Whisper base, whose encoder is that of S3Tokenizer v1 before the norm behind its last block.

Beside transformers' implementation, on speech-like sound through our log-mel. Its weights come from a package registry:
docs/jobs/metrics.md, 'The evaluator models', has the commands.
"""

import pytest
import torch
from conftest import speechlike
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vokens.audio import LogMel
from vokens.audio.mel import WHISPER_80
from vokens.checkpoint import load_strict
from vokens.evaluator_files import models_folder
from vokens.models.s3tokenizer import S3TokenizerConfig
from vokens.models.s3tokenizer.checkpoint import TABLE
from vokens.models.s3tokenizer.encoder import S3Encoder

pytestmark = pytest.mark.peers
FILE = models_folder() / "whisper-base/model.safetensors"
BASE = S3TokenizerConfig(
    n_mels=80, width=512, heads=8, layers=6, first_stride=1, positions="sinusoid", memory_taps=0
)

SIZES = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of the encoder, in float32, under OpenAI's names."""
    if not FILE.is_file():
        pytest.skip(
            f"{FILE} is missing: docs/jobs/metrics.md, 'The evaluator models', has the commands that fetch it"
        )
    return {name: value.float() for name, value in load_file(FILE).items() if name.startswith("encoder.")}


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {"encoder.": "", "positional_embedding": "embed_positions.weight", "ln_post": "layer_norm"}
    parts["blocks"] = "layers"
    parts |= {f"attn.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")}
    parts |= {"attn.out": "self_attn.out_proj", "attn_ln": "self_attn_layer_norm"}
    parts |= {"mlp.0": "fc1", "mlp.2": "fc2", "mlp_ln": "final_layer_norm"}
    renamed = {}
    for name, value in state.items():
        for theirs, others in parts.items():
            name = name.replace(theirs, others)
        renamed[name] = value
    return renamed


@torch.inference_mode()
def test_the_encoder_equals_transformers(weights: dict[str, Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    theirs = WhisperEncoder(transformers.WhisperConfig(**SIZES)).eval()
    theirs.load_state_dict(transformers_names(weights))
    last = {name: weights.pop(f"encoder.ln_post.{name}") for name in ("weight", "bias")}
    ours = S3Encoder(BASE).eval()
    named = {name.removeprefix("encoder."): value for name, value in TABLE.to_ours(weights).items()}
    load_strict(ours, named, "Whisper base")
    wave = torch.zeros(30 * 16000)
    wave[: 12 * 16000] = torch.from_numpy(speechlike(12 * 16000, 1))
    mel = LogMel(WHISPER_80)(wave[None])[..., :3000]
    found = F.layer_norm(ours(mel), (512,), **last)
    expected = theirs(mel).last_hidden_state
    assert found.shape == expected.shape == (1, 1500, 512)
    difference = (found - expected).abs().max()
    cosine = F.cosine_similarity(found, expected, dim=-1).min()
    print(
        f"largest difference {difference:.2e} of values up to {expected.abs().max():.1f}, cosine {cosine:.7f}"
    )
    assert difference < 1e-3
    assert cosine > 1 - 1e-6
    # A padded row of a batch is what it is alone.
    alone = ours(mel[..., :1200])
    padded = ours(mel, torch.tensor([1200]))[:, : alone.shape[1]]
    assert (padded - alone).abs().max() < 1e-3
