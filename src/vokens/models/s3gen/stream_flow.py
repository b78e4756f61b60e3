"""Tokens to mel while they arrive: what `generate` gives under the same chunk mask and noise (CosyVoice 2 §2.3).

The state is a value: it holds keys, values and borders of convolutions of the encoder, and of the estimator at each
of the solver's evaluations. The state after a voice's prompt is computed once and starts every utterance.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vokens.errors import ConfigError, TokensError
from vokens.flow.noise import PrefixNoise
from vokens.flow.solver import integrate
from vokens.models.s3gen.flow import Schedule, TokenToMel, Voice
from vokens.nn.streaming import Chunks, Context, StreamState


@dataclass(frozen=True)
class MelState:
    """A stream between two steps. Nothing in it is ever written to, so a copy is the same object.

    Attributes:
        waiting: (B, n) tokens that have come and are not yet encoded. position: tokens that are, prompt included.
        prompt: (B, F, mel_bins) the voice's mel. speaker: (B, mel_bins).
        conditions: streaming state of the encoder and of the estimator's conditions. evaluations: of the estimator,
            at each evaluation.
    """

    waiting: Tensor
    position: int
    prompt: Tensor
    speaker: Tensor
    conditions: StreamState
    evaluations: tuple[StreamState, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        states = (self.conditions, *self.evaluations)
        kept = (tensor for state in states for tensor in state.values())
        return sum(tensor.nbytes for tensor in (self.waiting, self.prompt, self.speaker, *kept))


class MelStream:
    """Streams of one plan: chunks, solver and noise.

    Args:
        flow: the model. chunks: the mask in tokens, the dialect's by default, whose grid starts with the prompt;
            chunks.with_border(P + 10) gives the first sound after 10 tokens and a prompt of P.
        schedule: as in TokenToMel.generate. noise: a table; the dialect's prefix noise by default, which also
            dialects with fresh noise use here, since their own cannot be drawn piece by piece.

    Under `num_left_chunks` >= 0 memory and work per chunk are constant; -1 keeps all that came before. The last
    tokens wait until three more have come, whatever the dialect's `not_final`.
    """

    def __init__(
        self,
        flow: TokenToMel,
        *,
        chunks: Chunks | None = None,
        schedule: Schedule | None = None,
        noise: PrefixNoise | None = None,
    ) -> None:
        self.flow = flow
        self.chunks = flow.config.chunks() if chunks is None else chunks
        self.noise = flow.prefix_noise if noise is None else noise
        with torch.inference_mode():
            self.schedule = schedule or flow.schedule()

    @torch.inference_mode()
    def start(self, voices: Voice | Sequence[Voice]) -> MelState:
        """The state after a voice's prompt, as far as whole chunks of it go; keep it and start utterances from it.

        A batch advances together, so the prompts of several voices must be equally long, else ConfigError.
        """
        flow = self.flow
        cut = [flow.cut_prompt(voice) for voice in ([voices] if isinstance(voices, Voice) else voices)]
        if len({(len(voice.tokens), len(voice.mel)) for voice in cut}) != 1:
            raise ConfigError(
                f"prompts of {[len(voice.tokens) for voice in cut]} tokens and {[len(voice.mel) for voice in cut]} "
                "frames cannot advance together: cut them to one length, or stream each by itself"
            )
        state = MelState(
            waiting=torch.stack([voice.tokens for voice in cut]),
            position=0,
            prompt=torch.stack([voice.mel for voice in cut]),
            speaker=flow.embed_speaker(torch.stack([voice.speaker for voice in cut])),
            conditions=StreamState(),
            evaluations=(StreamState(),) * len(self.schedule.guidance),
        )
        return self._advance(state, self._border(state))[1]

    @torch.inference_mode()
    def step(self, state: MelState, tokens: Tensor, final: bool = False) -> tuple[Tensor, MelState]:
        """The mel that the next tokens complete.

        Args:
            tokens: (n,) or (B, n) ids of any count, also none; all streams of a batch advance together.
            final: whether the utterance ends with them.

        Returns:
            mel (B, mel_bins, F) float32, F = 0 until a chunk and three more tokens have come, and the next state.

        Raises:
            TokensError: ids outside the vocabulary, another batch, or an utterance that ends without any token.
        """
        rows = tokens.reshape(1, -1) if tokens.dim() == 1 else tokens
        rows = torch.stack(self.flow.check_tokens(rows, least=0))
        if len(rows) != len(state.waiting):
            raise TokensError(f"tokens of {len(rows)} streams were given to a state of {len(state.waiting)}")
        state = replace(state, waiting=torch.cat([state.waiting, rows], 1))
        end = state.position + state.waiting.shape[1] if final else self._border(state)
        if final and end * self.flow.config.token_mel_ratio <= state.prompt.shape[1]:
            raise TokensError("the utterance ended without a token of its own: give at least one")
        return self._advance(state, end)

    def run(self, pieces: Iterable[Tensor], state: MelState) -> Iterator[Tensor]:
        """Mels (B, mel_bins, F) of pieces of one utterance, (n,) or (B, n), as soon as they are complete.

        The end of the pieces is the end of the utterance.
        """
        for tokens in pieces:
            mel, state = self.step(state, tokens)
            if mel.shape[2]:
                yield mel
        mel, _ = self.step(state, state.waiting[:, :0], final=True)
        if mel.shape[2]:
            yield mel

    def _border(self, state: MelState) -> int:
        """Ends of the complete chunks, with the tokens that they look ahead to."""
        seen = state.position + state.waiting.shape[1] - self.flow.config.pre_lookahead_len
        return max(state.position, self.chunks.border(max(0, seen)))

    def _advance(self, state: MelState, end: int) -> tuple[Tensor, MelState]:
        """Compute the frames of tokens state.position ... end - 1; what belongs to the prompt is not given out."""
        flow, ratio = self.flow, self.flow.config.token_mel_ratio
        count, start = end - state.position, state.position
        if not count:
            return state.speaker.new_zeros((*state.speaker.shape, 0), dtype=torch.float32), state
        ahead = state.waiting[:, : count + flow.config.pre_lookahead_len]
        kept, evaluations = StreamState(state.conditions), tuple(map(StreamState, state.evaluations))
        encoded = flow.encoder(
            flow.embedding(ahead),
            context=ahead.shape[1] - count,
            chunks=self.chunks,
            state=kept,
            offset=start,
        )
        mu = flow.project(encoded)
        prompt = torch.zeros_like(mu)
        known = state.prompt[:, ratio * start : ratio * end]
        prompt[:, : known.shape[1]] = known
        conditions = flow.conditions(mu, state.speaker, prompt, self.schedule, kept)
        frames = self.chunks.scaled(ratio)
        context = Context.of(mu, chunks=frames, offset=ratio * start)
        contexts = [replace(context, state=evaluation) for evaluation in evaluations]
        noise = self.noise.frames(ratio * start, ratio * end).to(mu.device).expand_as(mu)
        velocity = flow.velocity(conditions, contexts, self.schedule)
        x = integrate(velocity, noise, self.schedule.grid, self.schedule.solver)
        following = replace(
            state,
            waiting=state.waiting[:, count:],
            position=end,
            conditions=kept,
            evaluations=evaluations,
        )
        return x[:, max(0, state.prompt.shape[1] - ratio * start) :].transpose(1, 2), following
