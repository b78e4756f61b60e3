"""S3Gen's token encoders against recorded outputs, whole, in chunks and of ragged rows; `TokenToMel` streams them."""

import pytest
import torch
from s3gen_weights import build_flow, close, golden, golden3, reduced, reduced_flow, watched
from torch import Tensor

from vokens.models.s3gen.config import DIALECTS
from vokens.models.s3gen.encoder import TokenEncoder
from vokens.models.s3gen.flow import TokenToMel
from vokens.nn.attention import sines
from vokens.nn.conformer import relative_shift
from vokens.nn.streaming import Chunks

FULL, CHUNKED = "encoder_reduced_chatterbox", "encoder_reduced_cosyvoice2"
CHUNKS = Chunks(5)


@pytest.fixture
def flow() -> TokenToMel:
    return reduced_flow("cosyvoice2")


@torch.inference_mode()
def encode(flow: TokenToMel, tokens: Tensor, lengths: Tensor | None = None, **options) -> Tensor:
    return flow.encoder(flow.embedding(tokens), lengths, **options)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11, 17])
def test_recorded_full_attention(flow: TokenToMel, length: int) -> None:
    recorded = golden(FULL, f"T{length}")
    found = encode(flow, recorded["tokens"])
    close(found, recorded["encoder_out"], 1e-5)
    if "mu" in recorded:
        with torch.inference_mode():
            close(flow.project(found), recorded["mu"], 1e-5)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 10, 13])
def test_recorded_chunks(flow: TokenToMel, length: int) -> None:
    recorded = golden(CHUNKED, f"T{length}")
    close(encode(flow, recorded["tokens"], chunks=CHUNKS), recorded["encoder_out_chunk"], 1e-5)
    if "encoder_out_full" in recorded:
        close(encode(flow, recorded["tokens"]), recorded["encoder_out_full"], 1e-5)


@pytest.mark.parametrize("case", ["context", "context_T4"])
def test_recorded_context(flow: TokenToMel, case: str) -> None:
    recorded = golden(CHUNKED, case)
    tokens = recorded.get("tokens", golden(CHUNKED, "T13")["tokens"])
    close(encode(flow, tokens, context=3), recorded["encoder_out_full"], 1e-5)
    close(encode(flow, tokens, context=3, chunks=CHUNKS), recorded["encoder_out_chunk"], 1e-5)


def test_recorded_stages() -> None:
    flow, recorded = build_flow(reduced("cosyvoice2")), golden(FULL, "stages_T11")
    encoder = flow.encoder
    first, second = encoder.layers
    stages = {"embed": encoder.embed, "pre_lookahead_layer": encoder.lookahead, "after_norm": encoder.norm}
    stages |= {"encoders.0": first, "encoders.0.self_attn": first.attention, "encoders.1": second}
    stages |= {"up_layer": encoder.up, "up_embed": encoder.up_embed}
    seen = watched(stages | {f"up_encoders.{i}": layer for i, layer in enumerate(encoder.up_layers)})
    encode(flow, golden(FULL, "T11")["tokens"])
    assert set(seen) == set(recorded)
    for name, value in seen.items():
        value = value.transpose(1, 2) if name == "up_layer" else value
        # Before the last norm values reach 20, where 1e-5 is 4 roundings.
        close(value, recorded[name], 1e-5, 1e-6)


def test_relative_positions() -> None:
    recorded = golden(FULL, "rel_shift")
    assert torch.equal(relative_shift(recorded["in"], 4), recorded["out"])
    close(sines(torch.arange(3, -4, -1), 48), golden(FULL)["pos_emb_T4"][0], 1e-6)


def test_positions_are_kept_and_renewed() -> None:
    attention = TokenEncoder(reduced("cosyvoice2")).layers[0].attention
    with torch.no_grad():
        close(attention._distances(2, 5), attention._project(2, 5), 1e-6)
        close(attention._distances(200, 3), attention._project(200, 3), 1e-6)
        attention.positions.weight.mul_(2)
        close(attention._distances(7, 5), attention._project(7, 5), 1e-6)
        assert attention.double()._distances(2, 2).dtype == torch.float64


def test_recorded_ragged_singles(flow: TokenToMel) -> None:
    recorded = golden(FULL, "batch")
    found = encode(flow, recorded["tokens"], recorded["lengths"])
    close(found[1:2, :14], recorded["encoder_out_single1"], 1e-5)
    close(found[2:3, :2], recorded["encoder_out_single2"], 1e-5)
    recorded = golden(CHUNKED, "batch")
    found = encode(flow, recorded["tokens"], recorded["lengths"], chunks=CHUNKS)
    close(found[1:2, :14], recorded["encoder_out_chunk_single1"], 1e-5)


# CosyVoice 3's look-ahead


@pytest.mark.parametrize("case", ["T1", "T2", "T3", "T4", "T5", "T11", "context_T4", "context_T11"])
def test_recorded_lookahead(case: str) -> None:
    recorded = golden3("lookahead_reduced", case)
    context = 3 if case.startswith("context") else 0
    h = encode(reduced_flow("cosyvoice3"), recorded["tokens"], context=context)
    close(h[:, ::2], recorded["h"], 1e-5)
    assert torch.equal(h[:, ::2], h[:, 1::2])


@torch.inference_mode()
def test_recorded_lookahead_of_ragged_rows() -> None:
    flow, recorded = reduced_flow("cosyvoice3"), golden3("lookahead_reduced")
    tokens, lengths = recorded["batch/tokens"], recorded["batch/lengths"]
    h = encode(flow, tokens.clamp(min=0), lengths)[:, ::2]
    for row, n in enumerate(lengths.tolist()):
        close(h[row, :n], recorded["batch/h"][row, :n], 1e-5)
    close(flow.embed_speaker(recorded["embedding"]), recorded["spk80"], 1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_recorded_full_size() -> None:
    flow, recorded = build_flow(DIALECTS["cosyvoice2"]), golden("encoder_full")
    for case, options in (
        ("full", {}),
        ("chunk", {"chunks": Chunks(25)}),
        ("context_chunk", {"chunks": Chunks(25), "context": 3}),
    ):
        found = encode(flow, recorded["tokens"], **options)
        close(flow.project(found)[:, ::2], recorded[f"{case}/mu_sub"], 2e-5)
        if f"{case}/encoder_out_sub" in recorded:
            close(found[:, ::16], recorded[f"{case}/encoder_out_sub"], 2e-5)
