"""S3Gen's token encoder against recorded outputs; ragged batches, chunks and types change nothing."""

import itertools
from pathlib import Path

import pytest
import torch
from s3gen_weights import close, fill, part, reduced
from safetensors.torch import load_file
from torch import nn

from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.encoder import TokenEncoder
from vokens.nn.conformer import relative_shift, relative_sinusoids
from vokens.nn.streaming import Chunks, StreamState

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
        close(
            value, golden[name], 1e-5, 1e-6
        )  # before the last norm values reach 20, where 1e-5 is 4 roundings


def test_relative_positions():
    shifted = relative_shift(FULL["rel_shift/in"].float(), 4)
    assert torch.equal(shifted, FULL["rel_shift/out"].float())
    close(relative_sinusoids(3, 3, 48, torch.device("cpu")), FULL["pos_emb_T4"][0], 1e-6)


def test_positions_are_kept_and_renewed():
    attention = TokenEncoder(reduced("cosyvoice2")).layers[0].attention
    with torch.no_grad():
        close(attention._distances(2, 5), attention._project(2, 5), 1e-6)
        close(attention._distances(200, 3), attention._project(200, 3), 1e-6)
        attention.positions.weight.mul_(2)
        close(attention._distances(7, 5), attention._project(7, 5), 1e-6)
        assert attention.double()._distances(2, 2).dtype == torch.float64


@pytest.mark.parametrize("chunks", [None, CHUNKS, Chunks(5, left=1), Chunks(5, left=0, phase=2)])
@pytest.mark.parametrize("context", [0, 3])
@torch.inference_mode()
def test_ragged_batch_equals_singles(model, chunks, context):
    lengths = [17, 4, 9, 17, 5]
    tokens = torch.randint(6561, (5, 17), generator=torch.Generator().manual_seed(1))
    together = model(tokens, torch.tensor(lengths), context=context, chunks=chunks)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length], context=context, chunks=chunks)
        close(together[row : row + 1, : 2 * (length - context)], alone, 1e-5)


@torch.inference_mode()
def test_recorded_ragged_singles(model):
    golden = part(FULL, "batch")
    found = model(golden["tokens"], golden["lengths"])
    close(found[1:2, :14], golden["encoder_out_single1"], 1e-5)
    close(found[2:3, :2], golden["encoder_out_single2"], 1e-5)
    golden = part(CHUNKED, "batch")
    found = model(golden["tokens"], golden["lengths"], chunks=CHUNKS)
    close(found[1:2, :14], golden["encoder_out_chunk_single1"], 1e-5)


@pytest.mark.parametrize("chunks", [CHUNKS, Chunks(5, left=2), Chunks(5, left=0), Chunks(5, left=1, phase=3)])
@torch.inference_mode()
def test_stream_equals_whole(model, chunks):
    tokens = torch.randint(6561, (2, 48), generator=torch.Generator().manual_seed(2))
    whole = model(tokens, chunks=chunks)
    first = 5 - chunks.phase
    borders = [0, first, first + 15, first + 20, first + 40, 48]  # steps of one and of several chunks
    state, pieces = StreamState(), []
    for start, end in itertools.pairwise(borders):
        context = min(3, 48 - end)
        piece = tokens[:, start : end + context]
        pieces.append(model(piece, context=context, chunks=chunks, state=state, offset=start))
    close(torch.cat(pieces, 1), whole, 1e-5)
    if chunks.left >= 0:  # memory is bounded: keys and values (2, B, H, T, d) of the chunks in reach
        widest = max(part.shape[3] for part in state.values() if part.dim() == 5)
        assert widest <= 2 * (5 * chunks.left + 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_close(model, dtype):
    tokens = FULL["T17/tokens"]
    exact = model(tokens)
    half = fill(Encode(reduced("cosyvoice2"))).to(dtype)(tokens)
    assert half.dtype == dtype
    assert (half.float() - exact).std() < 0.02 * exact.std()


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
