"""Streams of S3Gen's flow join to what the whole utterance gives under the same mask, in constant memory."""

from pathlib import Path

import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import close, fill, part, reduced
from safetensors.torch import load_file

from vokens.errors import ConfigError, TokensError
from vokens.models.s3gen.flow import MelStream, TokenToMel, Voice
from vokens.nn.streaming import Chunks

GOLDEN = load_file(Path(__file__).parents[2] / "golden/s3gen/stream_reduced_cosyvoice2.safetensors")


@pytest.fixture(scope="module")
def flow():
    return fill(TokenToMel(reduced("cosyvoice2")))


def voice(prompt, extra=0):
    generator = seeded(prompt)
    return Voice(
        torch.randint(6561, (prompt,), generator=generator),
        torch.randn(2 * prompt + extra, 80, generator=generator),
        torch.randn(192, generator=generator),
    )


def ids(count, seed=0):
    return torch.randint(6561, (count,), generator=seeded(seed))


def join(stream, state, tokens, sizes):
    """The mels of pieces of these sizes, the rest as the last."""
    pieces = tokens.split([*sizes, tokens.shape[-1] - sum(sizes)], -1)
    return list(stream.run(pieces, state))


@pytest.mark.parametrize(("case", "hops"), [("aligned", [5, 5]), ("padded", [7, 5])])
def test_recorded_chunks(flow, case, hops):
    golden = part(GOLDEN, case)
    owner = Voice(golden["prompt_token"][0], golden["prompt_feat"][0], GOLDEN["embedding"][0].float())
    stream = MelStream(flow)
    mels = join(stream, stream.start(owner), golden["tokens"], [hops[0] + 3, hops[1]])
    for number, mel in enumerate(mels):
        close(mel, golden[f"chunk{number}"], 5e-5)
    close(torch.cat(mels, 2), golden["one_shot"], 5e-5)


@pytest.mark.parametrize(
    ("dialect", "chunks", "prompt", "extra"),
    [
        ("cosyvoice2", Chunks(5), 0, 0),
        ("cosyvoice2", Chunks(5, left=2), 23, 0),
        ("cosyvoice2", Chunks(5, left=0, phase=4), 1, 0),
        ("chatterbox", Chunks(5, phase=2), 8, 1),
        ("chatterbox", Chunks(5, left=1), 8, 0),
        ("chatterbox-turbo", Chunks(5, left=1, phase=3), 23, 1),
    ],
)
def test_stream_equals_whole(dialect, chunks, prompt, extra):
    flow, owner, tokens = fill(TokenToMel(reduced(dialect))), voice(prompt, extra), ids(21)
    schedule = flow.schedule(2)
    stream = MelStream(flow, chunks=chunks, schedule=schedule)
    total = len(flow.cut_prompt(owner).tokens) + 21
    noise = [flow.prefix_noise.frames(0, 2 * total)]
    whole, _ = flow.generate(tokens, owner, chunks=chunks, schedule=schedule, noise=noise)
    start = stream.start(owner)
    for sizes in ([1] * 20, [9, 0, 4], []):  # one state serves several utterances
        close(torch.cat(join(stream, start, tokens, sizes), 2), whole, 1e-4)


def test_batch_of_streams(flow):
    owners, tokens = (
        [voice(8), Voice(ids(8, 3), voice(8).mel.flip(0), voice(9).speaker)],
        ids(44).reshape(2, 22),
    )
    stream = MelStream(flow, schedule=flow.schedule(2))
    together = torch.cat(join(stream, stream.start(owners), tokens, [8, 6]), 2)
    for row, owner in enumerate(owners):
        alone = torch.cat(join(stream, stream.start(owner), tokens[row], [8, 6]), 2)
        close(together[row : row + 1], alone, 1e-5)


def test_first_sound_comes_after_as_many_tokens_as_wanted(flow):
    for prompt in (4, 11):
        for hop in (1, 3, 5):
            chunks = flow.config.chunks().with_border(prompt + hop)
            stream = MelStream(flow, chunks=chunks, schedule=flow.schedule(1))
            state, tokens = stream.start(voice(prompt)), ids(12)
            early, _ = stream.step(state, tokens[: hop + 2])
            mel, _ = stream.step(state, tokens[: hop + 3])
            assert (early.shape[2], mel.shape[2]) == (0, 2 * hop)


def test_bad_input(flow):
    stream = MelStream(flow)
    state = stream.start(voice(8))
    refused(TokensError, "6561", lambda: stream.step(state, torch.tensor([6561])))
    refused(TokensError, "2 streams", lambda: stream.step(state, ids(4).reshape(2, 2)))
    refused(TokensError, "without a token", lambda: stream.step(state, ids(0), final=True))
    refused(ConfigError, "advance together", lambda: stream.start([voice(8), voice(9)]))
    refused(ConfigError, "phase", Chunks, 5, phase=5)
