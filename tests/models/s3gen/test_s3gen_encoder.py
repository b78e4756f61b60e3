"""S3Gen's token encoder against recorded outputs, whole, in chunks and of ragged rows; `TokenToMel` streams it."""

from pathlib import Path

import pytest
import torch
from s3gen_weights import close, fill, part, reduced
from safetensors.torch import load_file
from torch import nn

from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.encoder import TokenEncoder
from vokens.nn.attention import sines
from vokens.nn.conformer import relative_shift
from vokens.nn.streaming import Chunks

HERE = Path(__file__).parents[2] / "golden/s3gen"
FULL = load_file(HERE / "encoder_reduced_chatterbox.safetensors")
CHUNKED = load_file(HERE / "encoder_reduced_cosyvoice2.safetensors")
CHUNKS = Chunks(5)


class Encode(nn.Module):
    """Tokens to the encoder's output, the part of the flow that these files record."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.token_embed_dim)
        self.encoder = TokenEncoder(config)
        self.project = nn.Linear(config.token_embed_dim, config.mel_bins)

    def forward(self, tokens, lengths=None, **options):
        return self.encoder(self.embedding(tokens), lengths, **options)


@pytest.fixture(scope="module")
def model():
    return fill(Encode(reduced("cosyvoice2")))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11, 17])
@torch.inference_mode()
def test_recorded_full_attention(model, length):
    golden = part(FULL, f"T{length}")
    found = model(golden["tokens"])
    close(found, golden["encoder_out"], 1e-5)
    if "mu" in golden:
        close(model.project(found), golden["mu"], 1e-5)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 10, 13])
@torch.inference_mode()
def test_recorded_chunks(model, length):
    golden = part(CHUNKED, f"T{length}")
    close(model(golden["tokens"], chunks=CHUNKS), golden["encoder_out_chunk"], 1e-5)
    if "encoder_out_full" in golden:
        close(model(golden["tokens"]), golden["encoder_out_full"], 1e-5)


@pytest.mark.parametrize("case", ["context", "context_T4"])
@torch.inference_mode()
def test_recorded_context(model, case):
    golden = part(CHUNKED, case)
    tokens = golden.get("tokens", CHUNKED["T13/tokens"])
    close(model(tokens, context=3), golden["encoder_out_full"], 1e-5)
    close(model(tokens, context=3, chunks=CHUNKS), golden["encoder_out_chunk"], 1e-5)


@torch.inference_mode()
def test_recorded_stages(model):
    golden, seen = part(FULL, "stages_T11"), {}
    encoder = model.encoder
    first, second = encoder.layers
    stages = {"embed": encoder.embed, "pre_lookahead_layer": encoder.lookahead, "after_norm": encoder.norm}
    stages |= {"encoders.0": first, "encoders.0.self_attn": first.attention, "encoders.1": second}
    stages |= {"up_layer": encoder.up, "up_embed": encoder.up_embed}
    stages |= {f"up_encoders.{i}": layer for i, layer in enumerate(encoder.up_layers)}
    for name, stage in stages.items():
        stage.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
    model(FULL["T11/tokens"])
    assert set(seen) == set(golden)
    for name, value in seen.items():
        value = value.transpose(1, 2) if name == "up_layer" else value
        # Before the last norm values reach 20, where 1e-5 is 4 roundings.
        close(value, golden[name], 1e-5, 1e-6)


def test_relative_positions():
    shifted = relative_shift(FULL["rel_shift/in"].float(), 4)
    assert torch.equal(shifted, FULL["rel_shift/out"].float())
    close(sines(torch.arange(3, -4, -1), 48), FULL["pos_emb_T4"][0], 1e-6)


def test_positions_are_kept_and_renewed():
    attention = TokenEncoder(reduced("cosyvoice2")).layers[0].attention
    with torch.no_grad():
        close(attention._distances(2, 5), attention._project(2, 5), 1e-6)
        close(attention._distances(200, 3), attention._project(200, 3), 1e-6)
        attention.positions.weight.mul_(2)
        close(attention._distances(7, 5), attention._project(7, 5), 1e-6)
        assert attention.double()._distances(2, 2).dtype == torch.float64


@torch.inference_mode()
def test_recorded_ragged_singles(model):
    golden = part(FULL, "batch")
    found = model(golden["tokens"], golden["lengths"])
    close(found[1:2, :14], golden["encoder_out_single1"], 1e-5)
    close(found[2:3, :2], golden["encoder_out_single2"], 1e-5)
    golden = part(CHUNKED, "batch")
    found = model(golden["tokens"], golden["lengths"], chunks=CHUNKS)
    close(found[1:2, :14], golden["encoder_out_chunk_single1"], 1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_recorded_full_size():
    model = fill(Encode(DIALECTS["cosyvoice2"]))
    golden = load_file(HERE / "encoder_full.safetensors")
    for case, options in (
        ("full", {}),
        ("chunk", {"chunks": Chunks(25)}),
        ("context_chunk", {"chunks": Chunks(25), "context": 3}),
    ):
        found = model(golden["tokens"], **options)
        close(model.project(found)[:, ::2], golden[f"{case}/mu_sub"], 2e-5)
        if f"{case}/encoder_out_sub" in golden:
            close(found[:, ::16], golden[f"{case}/encoder_out_sub"], 2e-5)
