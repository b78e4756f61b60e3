"""Streams of S3Gen's flow join to what the whole utterance gives under the same mask, in constant memory."""

from itertools import product

import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import close, golden, golden3, ids, reduced_flow, voice_of
from torch import Tensor

from vokens.errors import ConfigError, TokensError
from vokens.models.s3gen.flow import MelState, MelStream, TokenToMel, Voice
from vokens.nn.streaming import Chunks


@pytest.fixture
def flow() -> TokenToMel:
    return reduced_flow("cosyvoice2")


def voice(prompt: int, extra: int = 0) -> Voice:
    generator = seeded(prompt)
    return Voice(
        torch.randint(6561, (prompt,), generator=generator),
        torch.randn(2 * prompt + extra, 80, generator=generator),
        torch.randn(192, generator=generator),
    )


def join(stream: MelStream, state: MelState, tokens: Tensor, sizes: list[int]) -> list[Tensor]:
    """The mels of pieces of these sizes, the rest as the last."""
    pieces = tokens.split([*sizes, tokens.shape[-1] - sum(sizes)], -1)
    return list(stream.run(pieces, state))


@pytest.mark.parametrize("dialect", ["cosyvoice2", "cosyvoice3"])
@pytest.mark.parametrize(("case", "hops"), [("aligned", [5, 5]), ("padded", [7, 5])])
def test_recorded_chunks(dialect: str, case: str, hops: list[int]) -> None:
    read, file = (golden, "stream_reduced_cosyvoice2") if dialect[-1] == "2" else (golden3, "stream_reduced")
    recorded, stream = read(file, case), MelStream(reduced_flow(dialect))
    state = stream.start(voice_of(recorded, read(file)["embedding"]))
    mels = join(stream, state, recorded["tokens"], [hops[0] + 3, hops[1]])
    for number, mel in enumerate(mels):
        close(mel, recorded[f"chunk{number}"], 5e-5)
    close(torch.cat(mels, 2), recorded["one_shot"], 5e-5)


@pytest.mark.parametrize(
    ("dialect", "chunks", "prompt", "extra"),
    [
        ("cosyvoice2", Chunks(5), 0, 0),
        ("cosyvoice2", Chunks(5, left=2), 23, 0),
        ("cosyvoice2", Chunks(5, left=0, phase=4), 1, 0),
        ("chatterbox", Chunks(5, phase=2), 8, 1),
        ("chatterbox", Chunks(5, left=1), 8, 0),
        ("chatterbox-turbo", Chunks(5, left=1, phase=3), 23, 1),
        *(
            ("cosyvoice3", chunks, prompt, 0)
            for chunks, prompt in product(
                (Chunks(5), Chunks(5, left=2, phase=3), Chunks(5, left=0)), (0, 8, 23)
            )
        ),
    ],
)
def test_stream_equals_whole(dialect: str, chunks: Chunks, prompt: int, extra: int) -> None:
    flow, owner, tokens = reduced_flow(dialect), voice(prompt, extra), ids(21)
    schedule = flow.schedule(2)
    stream = MelStream(flow, chunks=chunks, schedule=schedule)
    total = len(flow.cut_prompt(owner).tokens) + 21
    noise = [flow.prefix_noise.frames(0, 2 * total)]
    whole, _ = flow.generate(tokens, owner, chunks=chunks, schedule=schedule, noise=noise)
    start = stream.start(owner)
    for sizes in ([1] * 20, [9, 0, 4], []):  # one state serves several utterances
        mel = torch.cat(join(stream, start, tokens, sizes), 2)
        close(mel, whole, 5e-5 if dialect == "cosyvoice3" else 1e-4)


def test_batch_of_streams(flow: TokenToMel) -> None:
    owners = [voice(8), Voice(ids(8, 3), voice(8).mel.flip(0), voice(9).speaker)]
    tokens, stream = ids(44).reshape(2, 22), MelStream(flow, schedule=flow.schedule(2))
    together = torch.cat(join(stream, stream.start(owners), tokens, [8, 6]), 2)
    for row, owner in enumerate(owners):
        alone = torch.cat(join(stream, stream.start(owner), tokens[row], [8, 6]), 2)
        close(together[row : row + 1], alone, 1e-5)


def test_first_sound_comes_after_as_many_tokens_as_wanted(flow: TokenToMel) -> None:
    for prompt, hop in product((4, 11), (1, 3, 5)):
        chunks = flow.config.chunks().with_border(prompt + hop)
        stream = MelStream(flow, chunks=chunks, schedule=flow.schedule(1))
        state, tokens = stream.start(voice(prompt)), ids(12)
        early, _ = stream.step(state, tokens[: hop + 2])
        mel, _ = stream.step(state, tokens[: hop + 3])
        assert (early.shape[2], mel.shape[2]) == (0, 2 * hop)


@pytest.mark.parametrize("dialect", ["chatterbox-turbo", "cosyvoice3"])
def test_state_is_bounded(dialect: str) -> None:
    """As large after 40 chunks as after 5. Of CosyVoice 3, per step and branch: 30 columns of each convolution of
    positions, keys and values of what chunks see."""
    flow = reduced_flow(dialect)
    stream = MelStream(flow, chunks=Chunks(5, left=2), schedule=flow.schedule(2))
    state, sizes = stream.start(Voice(torch.zeros(0).long(), torch.zeros(0, 80), torch.ones(192))), []
    for number, count in enumerate([8] + [5] * 39):
        mel, state = stream.step(state, torch.arange(count) + number)
        assert mel.shape == (1, 80, 10)
        sizes.append(state.nbytes)
    assert len(set(sizes[2 if dialect == "cosyvoice3" else 5 :])) == 1
    if dialect == "cosyvoice3":
        shapes = [tuple(kept.shape) for kept in state.evaluations[0].values()]
        assert shapes == [(2, 30, 48)] * 2 + [(2, 2, 3, 20, 16)] * 3


def test_bad_input(flow: TokenToMel) -> None:
    stream = MelStream(flow)
    state = stream.start(voice(8))
    refused(TokensError, "6561", lambda: stream.step(state, torch.tensor([6561])))
    refused(TokensError, "2 streams", lambda: stream.step(state, ids(4).reshape(2, 2)))
    refused(TokensError, "without a token", lambda: stream.step(state, ids(0), final=True))
    refused(ConfigError, "advance together", lambda: stream.start([voice(8), voice(9)]))
    refused(ConfigError, "phase", Chunks, 5, phase=5)
