"""S3Gen's first half: speech tokens and a voice to a log-mel at twice their rate, by flow matching (CosyVoice 2 §2.3).

Tokens of prompt and target go through the encoder to mu; an ODE turns noise into the mel of both, given mu, the
speaker and the prompt's mel; the prompt's frames are cut. Rows of a ragged batch equal single runs. A stream is the
same computation with the state of the encoder, and of the estimator at each of the solver's evaluations.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vokens.errors import AudioError, ConfigError, TokensError
from vokens.flow.guidance import guidance_schedule, guide
from vokens.flow.noise import Generators, PrefixNoise, broadcast_generators, fresh_noise
from vokens.flow.solver import Solver, evaluation_times, integrate, time_grid
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.encoder import LookaheadEncoder, TokenEncoder
from vokens.models.s3gen.estimator import DiT, Estimator
from vokens.nn.product import Linear
from vokens.nn.streaming import Chunks, Context, StreamState


@dataclass(frozen=True)
class Voice:
    """Speaker conditioning of S3Gen: a prompt's tokens (P,) int64, its log-mel (F, mel_bins), F about 2 P, and the
    speaker vector (192,), not normalised. A voice without a prompt has P = F = 0."""

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Voice":
        """Elsewhere, or in another floating-point type; token ids stay integers."""
        return Voice(self.tokens.to(device), self.mel.to(device, dtype), self.speaker.to(device, dtype))


@dataclass(frozen=True)
class Schedule:
    """A solver's plan: its grid (N + 1,), and for each of its M evaluations the guidance and the shifts by time."""

    grid: Tensor
    solver: Solver
    guidance: list[float]
    shifts: Tensor  # (M, stages, C)


@dataclass(frozen=True)
class Prepared:
    """Inputs of the ODE, in the weights' type: mu, prompt (B, T, mel_bins) and speaker (B, mel_bins).

    lengths: frames of each row, prompt and target. starts: the prompt's, which are cut from the result. overlay:
    the target's by its tokens, on which MeanFlow draws twice.
    """

    mu: Tensor
    speaker: Tensor
    prompt: Tensor
    lengths: list[int]
    starts: list[int]
    overlay: list[int]


class TokenToMel(Pretrained):
    """S3 tokens in a voice to a log-mel. Matrix products run in the weights' type; norms, time features, guidance and
    the solver's state are float32 always, token ids int64 always."""

    system = "s3gen_flow"
    Config = S3GenConfig

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.token_embed_dim)
        self.speaker = Linear(config.speaker_embed_dim, config.mel_bins)
        if config.network == "dit":
            self.encoder, self.project, self.estimator = LookaheadEncoder(config), nn.Identity(), DiT(config)
        else:
            self.encoder, self.estimator = TokenEncoder(config), Estimator(config)
            self.project = Linear(config.token_embed_dim, config.mel_bins)
        self.prefix_noise = PrefixNoise(config.mel_bins)

    @torch.inference_mode()
    def generate(
        self,
        tokens: Tensor | Sequence[Tensor],
        voices: Voice | Sequence[Voice],
        *,
        finalize: bool = True,
        chunks: Chunks | None = None,
        schedule: Schedule | None = None,
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-mels (B, mel_bins, F) float32 of utterances, zero beyond each row's frames, and these (B,) int64.

        Args:
            tokens: ids (N,), (B, N), or a list of (N,) of any lengths. voices: one for all, or one for each.
            finalize: whether the utterances end here; if more tokens are to come, the last three are only looked at.
            chunks: the streaming mask in tokens, `config.chunks()`; None for full attention.
            schedule: from `schedule`; the release's own by default.
            generator: of fresh noise, one for all or one for each. Instead of the release's noise, seeds: one for each,
                of noise by position alone; or noise: (T, mel_bins) for each, prompt included.

        Raises TokensError for no tokens, ids outside 0 ... vocab_size - 1, or too few while not final; AudioError for
        a voice of other sizes, or with NaN; ConfigError for wrong counts of voices or generators.
        """
        given = self.prepare(tokens, voices, finalize=finalize, chunks=chunks)
        generators = broadcast_generators(generator, len(given.lengths))
        schedule = schedule or self.schedule()
        if seeds is not None:
            tables = [PrefixNoise(self.config.mel_bins, seed) for seed in seeds]
            noise = [table.frames(0, length) for table, length in zip(tables, given.lengths, strict=True)]
        noise = self._noise(given, generators) if noise is None else noise
        start = pad_sequence([item.to(self.device, torch.float32) for item in noise], batch_first=True)
        if start.shape != given.mu.shape:
            raise ConfigError(f"noise {tuple(start.shape)} was given, {tuple(given.mu.shape)} is needed")
        frames = None if chunks is None else chunks.scaled(self.config.token_mel_ratio)
        conditions = given.mu, given.speaker, given.prompt
        same = min(given.lengths) == max(given.lengths)  # needs no masks
        lengths = None if same else torch.tensor(given.lengths, device=self.device)
        x = self.sample(*conditions, start, schedule, lengths=lengths, chunks=frames)
        rows = [row[a:b] for row, a, b in zip(x, given.starts, given.lengths, strict=True)]
        counts = torch.tensor([len(row) for row in rows], device=self.device)
        return pad_sequence(rows, batch_first=True).transpose(1, 2), counts

    def schedule(
        self, steps: int | None = None, solver: Solver | None = None, guidance: float | None = None
    ) -> Schedule:
        """The release's plan, or one with another number of steps, solver or strength of guidance."""
        config = self.config
        solver = solver or config.cfm_solver
        if config.meanflow and (solver != "euler" or guidance):
            raise ConfigError("MeanFlow weights take Euler steps without guidance: their training holds it")
        grid, times, ends = self._times(steps, solver)
        rate = config.cfm_inference_cfg_rate if guidance is None else guidance
        shifts = self.estimator.shifts(times, ends)
        return Schedule(grid, solver, guidance_schedule(times, rate, config.cfm_guidance_end), shifts)

    def _times(self, steps: int | None, solver: Solver | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """A plan's grid, and on this device the times of its evaluations and for MeanFlow their ends."""
        config = self.config
        grid = time_grid(steps or config.cfm_steps, config.cfm_t_scheduler)
        times = evaluation_times(grid, solver or config.cfm_solver).to(self.device)
        return grid, times, grid[1:].to(self.device) if config.meanflow else None

    def fix_steps(self, steps: int | None = None, solver: Solver | None = None) -> Self:
        """Keep only what this plan needs of the weights that see the time alone: 568 MB less of CosyVoice 3's 1.3 GB,
        and the same result. Other plans, training and saving need the model loaded again.

        Raises ConfigError for networks other than CosyVoice 3's.
        """
        if not isinstance(self.estimator, DiT):
            raise ConfigError('fix_steps is for network="dit": of others few weights see the time alone')
        _ = self.fingerprint  # while all weights are there
        _, times, ends = self._times(steps, solver)
        self.estimator.fix_times(times, ends)
        return self

    def sample(
        self,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        noise: Tensor,
        schedule: Schedule,
        *,
        lengths: Tensor | None = None,
        chunks: Chunks | None = None,
        offset: int = 0,
        state: StreamState | None = None,
        evaluations: Sequence[StreamState] = (),
    ) -> Tensor:
        """Solve the ODE from noise (B, T, mel_bins) float32 to the mel of the same shape.

        mu, prompt (B, T, mel_bins), speaker (B, mel_bins). lengths: (B,) frames of ragged rows. chunks: in frames. Of a
        stream also offset, the frames before, and the states of the conditions and of each evaluation.
        """
        context = Context.of(mu, lengths=lengths, chunks=chunks, offset=offset)
        contexts = [replace(context, state=own) for own in evaluations] or [context] * len(schedule.guidance)
        if any(schedule.guidance):  # a second batch without conditions
            mu, speaker, prompt = (torch.cat([x, torch.zeros_like(x)]) for x in (mu, speaker, prompt))
        conditions = self.estimator.conditions(mu, speaker, prompt, state)

        def velocity(x: Tensor, number: int) -> Tensor:
            rate, own = schedule.guidance[number], contexts[number]
            shifts = schedule.shifts[number : number + 1]
            if not rate:
                return self.estimator(x, shifts, tuple(part[: len(x)] for part in conditions), own).float()
            both = self.estimator(torch.cat([x, x]), shifts, conditions, own.repeated(2)).float()
            return guide(both, rate, self.config.cfm_guidance_from)

        return integrate(velocity, self._tempered(noise), schedule.grid, schedule.solver)

    def _tempered(self, noise: Tensor) -> Tensor:
        """Noise (B, T, mel_bins), the guided dims at the config's temperature."""
        first, temperature = self.config.cfm_guidance_from, self.config.cfm_temperature
        if temperature == 1:
            return noise
        return torch.cat([noise[..., :first], noise[..., first:] * temperature], -1)

    # From tokens and voices to conditions -------------------------------------------------------------------

    def prepare(
        self,
        tokens: Tensor | Sequence[Tensor],
        voices: Voice | Sequence[Voice],
        *,
        finalize: bool = True,
        chunks: Chunks | None = None,
    ) -> Prepared:
        """Check, join prompts and targets, and encode; arguments as in `generate`."""
        config, ratio = self.config, self.config.token_mel_ratio
        targets = self.check_tokens(tokens, least=1 if finalize else config.pre_lookahead_len + 1)
        owners = [voices] * len(targets) if isinstance(voices, Voice) else list(voices)
        if len(owners) != len(targets):
            raise ConfigError(f"{len(owners)} voices for {len(targets)} utterances: one or one each")
        cut = [self.cut_prompt(voice) for voice in owners]
        ids = [torch.cat([voice.tokens, target]) for voice, target in zip(cut, targets, strict=True)]
        ahead = 0 if finalize else config.pre_lookahead_len
        context = ahead if config.not_final == "context" else 0
        sizes = torch.tensor([len(row) for row in ids], device=self.device)
        lengths = [ratio * (len(row) - ahead) for row in ids]
        sizes = None if min(lengths) == max(lengths) else sizes
        embedded = self.embedding(pad_sequence(ids, batch_first=True))
        encoded = self.encoder(embedded, sizes, context=context, chunks=chunks)
        mu = self.project(encoded)[:, : max(lengths)]
        prompt = torch.zeros_like(mu)
        for row, voice, length in zip(prompt, cut, lengths, strict=True):
            if len(voice.mel) >= length:
                raise AudioError(
                    f"a prompt of {len(voice.mel)} mel frames leaves nothing of the {length} frames that its "
                    f"{len(voice.tokens)} tokens and the utterance have together: give frames and tokens of one clip"
                )
            row[: len(voice.mel)] = voice.mel
        speaker = self.embed_speaker(torch.stack([voice.speaker for voice in cut]))
        starts = [len(voice.mel) for voice in cut]
        overlay = [length - ratio * len(voice.tokens) for length, voice in zip(lengths, cut, strict=True)]
        return Prepared(mu, speaker, prompt, lengths, starts, overlay)

    def embed_speaker(self, vectors: Tensor) -> Tensor:
        """Speaker vectors (B, 192) of any length to (B, mel_bins)."""
        return self.speaker(F.normalize(vectors.float(), dim=1).to(self.dtype))

    def check_tokens(self, tokens: Tensor | Sequence[Tensor], least: int = 1) -> list[Tensor]:
        """Each row's ids (N,) int64 on this device, of at least `least` tokens, all inside the vocabulary."""
        if isinstance(tokens, Tensor) and tokens.dim() == 1:
            tokens = [tokens]
        rows = [row.to(self.device) for row in tokens]
        if not rows or any(row.dim() != 1 or row.is_floating_point() or len(row) < least for row in rows):
            given = [f"{tuple(row.shape)} {row.dtype}".replace("torch.", "") for row in rows]
            raise TokensError(
                f"tokens of {given} were given: integers (N,), (B, N), or a list of (N,) are accepted, N from {least}"
                + (", for the last three are only looked at until finalize=True" if least > 1 else "")
            )
        rows = [row.long() for row in rows]
        self._check_range(torch.cat(rows), "tokens")
        return rows

    def cut_prompt(self, voice: Voice) -> Voice:
        """The voice on this device, its prompt's tokens and frames cut to each other as the release does."""
        config, ratio = self.config, self.config.token_mel_ratio
        bins, width = config.mel_bins, config.speaker_embed_dim
        tokens, mel, speaker = (tuple(part.shape) for part in (voice.tokens, voice.mel, voice.speaker))
        if len(tokens) != 1 or len(mel) != 2 or mel[1] != bins or speaker != (width,):
            raise AudioError(
                f"a voice with tokens {tokens}, mel {mel} and speaker vector {speaker} was given: (P,), (F, {bins}) "
                f"and ({width},) are accepted"
            )
        if not (voice.mel.isfinite().all() and voice.speaker.isfinite().all()):
            raise AudioError("the voice holds NaN or infinity: its reference is damaged")
        voice = voice.to(self.device, self.dtype)
        self._check_range(voice.tokens, "the prompt's tokens")
        count = min(len(voice.tokens), len(voice.mel) // ratio)
        frames = ratio * count if config.prompt_cut == "both" else len(voice.mel)
        return Voice(voice.tokens[:count].long(), voice.mel[:frames], voice.speaker)

    def _check_range(self, tokens: Tensor, what: str) -> None:
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise TokensError(
                f"{what} from {int(tokens.min())} to {int(tokens.max())} were given: 0 to "
                f"{self.config.vocab_size - 1} are accepted; take out marks such as start and end of speech"
            )

    def _noise(self, given: Prepared, generators: Sequence[torch.Generator | None]) -> list[Tensor]:
        """The release's noise of each row. Chatterbox's MeanFlow draws the target's first and lays it over the end."""
        bins, noise = self.config.mel_bins, []
        for length, overlay, own in zip(given.lengths, given.overlay, generators, strict=True):
            if self.config.noise == "prefix":
                noise.append(self.prefix_noise.frames(0, length))
            elif not self.config.meanflow:
                noise.append(fresh_noise(length, bins, own))
            else:
                end = fresh_noise(overlay, bins, own)
                noise.append(torch.cat([fresh_noise(length, bins, own)[: length - overlay], end]))
        return noise


@dataclass(frozen=True)
class MelState:
    """A stream between two steps. Nothing in it is ever written to, so a copy is the same object."""

    waiting: Tensor  # (B, n) tokens that have come and are not yet encoded
    position: int  # tokens that are encoded, prompt included
    prompt: Tensor  # (B, F, mel_bins) the voice's mel
    speaker: Tensor  # (B, mel_bins)
    conditions: StreamState  # streaming state of the encoder and of the estimator's conditions
    evaluations: tuple[StreamState, ...]  # of the estimator, at each evaluation

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        states = (self.conditions, *self.evaluations)
        kept = (tensor.untyped_storage().nbytes() for state in states for tensor in state.values())
        return sum(tensor.nbytes for tensor in (self.waiting, self.prompt, self.speaker)) + sum(kept)


class MelStream:
    """Tokens to mel while they arrive, what `generate` gives under the same chunk mask and noise (CosyVoice 2 §2.3):
    streams of one plan of chunks, solver and noise. The state after a voice's prompt starts every utterance of it.

    Args:
        flow: the model. chunks: the mask in tokens, the release's by default, whose grid starts with the prompt;
            chunks.with_border(P + 10) gives the first sound after 10 tokens and a prompt of P.
        schedule: as in TokenToMel.generate. noise: a table; the release's prefix noise by default, which also
            releases with fresh noise use here, since their own cannot be drawn piece by piece.

    Under `num_left_chunks` >= 0 memory and work per chunk are constant; -1 keeps all that came before. The last
    tokens wait until three more have come, whatever the release's `not_final`.
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

        tokens: (n,) or (B, n) ids of any count, also none; all streams of a batch advance together. final: whether the
        utterance ends with them. The mel (B, mel_bins, F) is float32, F = 0 until a chunk and three more tokens have
        come. Raises TokensError for ids outside the vocabulary, another batch, or an utterance without any token.
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
        """Mels (B, mel_bins, F) of all pieces, (n,) or (B, n), of one utterance, as soon as they are complete."""
        for tokens in pieces:
            mel, state = self.step(state, tokens)
            if mel.shape[2]:
                yield mel
        yield self.step(state, state.waiting[:, :0], final=True)[0]

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
        noise = self.noise.frames(ratio * start, ratio * end).to(mu.device).expand_as(mu)
        x = flow.sample(
            mu,
            state.speaker,
            prompt,
            noise,
            self.schedule,
            chunks=self.chunks.scaled(ratio),
            offset=ratio * start,
            state=kept,
            evaluations=evaluations,
        )
        waiting = state.waiting[:, count:]
        following = replace(state, waiting=waiting, position=end, conditions=kept, evaluations=evaluations)
        return x[:, max(0, state.prompt.shape[1] - ratio * start) :].transpose(1, 2), following
