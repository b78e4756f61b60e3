"""HiFT, the vocoder of CosyVoice and S3Gen (HiFTNet, arXiv 2309.09493): log-mel (B, 80, T) to wave (B, 480 T).

A pitch predictor drives a harmonic source; its spectrum joins the upsampled mel at every resolution, and the network
ends in small spectra whose inverse transform is the wave. Convolutions leave their borders to `Padding`, so that one
forward pass serves whole signals, ragged batches and streams. Module names are the published ones.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from vokens.checkpoint import fold_weight_norm
from vokens.errors import AudioError, ConfigError
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen.checkpoint import hift_config, hift_from_published
from vokens.models.s3gen.config import HiFTNetConfig
from vokens.models.s3gen.source import Draws, GivenDraws, HarmonicSource, KeyedDraws, ReleasedDraws, exact
from vokens.nn.float32 import Float32
from vokens.nn.padding import WHOLE, Padding, RaggedPadding, StreamPadding, side_by_side
from vokens.nn.product import Linear, linear
from vokens.nn.snake import Snake
from vokens.nn.streaming import StreamState

_LOUDEST = 100.0  # of a predicted magnitude
_LAST_SLOPE = 0.01  # of the last leaky ReLU: torch's default, not the configured one, as published

Reads = Literal["both", "past", "future"]


class Conv(nn.Conv1d):
    """Convolution with zeros beyond the ends. It reads as much of the past as of the future, or that alone."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        reads: Reads = "both",
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation=dilation)
        self.weight.data = side_by_side(self.weight.data)
        span = (kernel - 1) * dilation
        around = (span + 1 - stride) // 2 if stride > 1 else span // 2
        past = stride - 1 if stride > 1 else span
        self.sides = {"both": (around, around), "past": (past, 0), "future": (0, span)}[reads]

    def forward(self, input: Tensor, padding: Padding = WHOLE) -> Tensor:
        return padding.conv(self, input, self.weight, self.bias, self.stride[0], self.sides, self.dilation[0])


class Up(nn.Module):
    """Transposed convolution: (B, in, N) -> (B, out, N * rate)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__()
        plain = nn.ConvTranspose1d(inputs, outputs, kernel, rate)  # for torch's initial weights
        self.weight, self.bias = plain.weight, plain.bias
        self.rate, self.padding = rate, (kernel - rate) // 2

    def forward(self, x: Tensor, padding: Padding = WHOLE) -> Tensor:
        return padding.transposed(self, x, self.weight, self.bias, self.rate, self.padding)


class CausalUp(Conv):
    """Every column `rate` times, then a convolution over the past: (B, in, N) -> (B, out, N * rate)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__(inputs, outputs, kernel, reads="past")
        self.rate = rate

    def forward(self, input: Tensor, padding: Padding = WHOLE) -> Tensor:
        return super().forward(input.repeat_interleave(self.rate, -1), padding)


class ResBlock(nn.Module):
    """Pairs of convolutions with Snake before each, one pair per dilation, around shortcuts."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], causal: bool = False) -> None:
        super().__init__()
        sizes = channels, channels, kernel
        reads: Reads = "past" if causal else "both"
        self.convs1 = nn.ModuleList(Conv(*sizes, dilation=d, reads=reads) for d in dilations)
        self.convs2 = nn.ModuleList(Conv(*sizes, reads=reads) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:  # (B, C, N)
        parts = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for place, (snake1, conv1, snake2, conv2) in enumerate(parts):
            y = conv2(snake2(conv1(snake1(x), padding), in_place=True), padding)
            x, y = padding.join((self, place), x, y)
            x = x + y
        return x


class F0Predictor(Float32):
    """Pitch (B, T) in Hz of log-mels (B, 80, T): five convolutions of 3 frames, and the size of a number. Where the
    network is causal, the first reads three frames of the future, the others two of the past.

    Exact arithmetic is float64: a rounding of 1e-4 Hz, which differs between batches, turns the ninth harmonic by
    0.3 rad in a minute.
    """

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.exact = config.arithmetic == "exact"
        channels = config.f0_predictor_cond_channels
        self.condnet = nn.Sequential()
        first, later = ((4, "future"), (3, "past")) if config.causal else ((3, "both"),) * 2
        for layer in range(5):
            inputs, (kernel, reads) = (channels, later) if layer else (config.in_channels, first)
            self.condnet.append(Conv(inputs, channels, kernel, reads=reads))
            self.condnet.append(nn.ELU())
        self.classifier = Linear(channels, 1)

    def forward(self, mel: Tensor, padding: Padding = WHOLE) -> Tensor:
        cast = exact if self.exact else Tensor.float
        x = cast(mel)
        for layer in self.condnet:
            if isinstance(layer, Conv):
                weight, bias = cast(layer.weight), cast(layer.get_parameter("bias"))
                x = padding.conv(layer, x, weight, bias, sides=layer.sides)
            else:
                x = layer(x)
        weight, bias = cast(self.classifier.weight), cast(self.classifier.bias)
        return linear(x.transpose(1, 2), weight, bias)[..., 0].abs().float()


class Spectrum(Float32):
    """Short-time spectra (B, 2 K, F) of waves and back, K = n_fft / 2 + 1: real parts, then imaginary ones.

    Both directions are convolutions with windowed cosines and sines: at 16 samples faster than an FFT.
    """

    analysis: Tensor
    synthesis: Tensor
    energy: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        # On the CPU whatever the default device: a checkpoint is loaded into a network built without storage.
        time = torch.arange(n_fft, dtype=torch.float64, device="cpu")
        window = torch.hann_window(n_fft, dtype=torch.float64, device="cpu")
        angle = 2 * math.pi / n_fft * torch.arange(n_fft // 2 + 1, device="cpu")[:, None] * time
        waves = torch.cat([angle.cos(), -angle.sin()]) * window  # (2 K, n_fft)
        count = torch.full((n_fft // 2 + 1, 1), 2.0, dtype=torch.float64, device="cpu")
        count[0] = count[-1] = 1  # the others stand for their mirror image as well
        for name, basis in (
            ("analysis", waves[:, None]),
            ("synthesis", (waves * count.repeat(2, 1) / n_fft)[:, None]),
            ("energy", window.square()[None, None]),
        ):
            self.register_buffer(name, basis.float(), persistent=False)

    def of_wave(self, wave: Tensor, padding: Padding = WHOLE) -> Tensor:
        """wave (B, 1, N) -> (B, 2 K, N / hop + 1), windows centred on multiples of hop, reflected ends."""
        padded = padding.mirror((self, "mirror"), wave, self.n_fft // 2, self.n_fft // 2)
        return padding.conv((self, "analysis"), padded, self.analysis, stride=self.hop)

    def to_wave(self, features: Tensor, padding: Padding = WHOLE) -> Tensor:
        """Log magnitudes and sines' arguments of phases (B, 2 K, F) -> wave (B, (F - 1) hop)."""
        log_magnitude, phase = features.float().chunk(2, 1)
        magnitude, phase = log_magnitude.exp().clamp(max=_LOUDEST), phase.sin()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], 1)
        wave = self._overlap("synthesis", spectrum, padding)
        return wave / self._overlap("energy", torch.ones_like(spectrum[:, :1]), padding).clamp(min=1e-11)

    def _overlap(self, basis: str, frames: Tensor, padding: Padding) -> Tensor:
        weight = self.get_buffer(basis)
        return padding.transposed((self, basis), frames, weight, None, self.hop, self.n_fft // 2)[:, 0]


@dataclass(frozen=True)
class HiFTState:
    """A stream between two chunks; constant in size."""

    draws: KeyedDraws
    layers: StreamState = field(default_factory=StreamState)  # columns that they still need
    frames: int = 0  # mel frames so far
    samples: int = 0  # of the source so far
    ended: bool = False


class HiFTNetModel(Pretrained):
    """The vocoder. `inference` for whole mels, `init_state` and `step` for mels that arrive in chunks."""

    system = "hiftnet"
    Config = HiFTNetConfig

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__(config)
        channels = [config.base_channels >> stage for stage in range(len(config.upsample_rates) + 1)]
        self.f0_predictor = F0Predictor(config)
        self.m_source = HarmonicSource(config)
        self.stft = Spectrum(config.istft_n_fft, config.istft_hop_len)
        causal = config.causal
        reads: Reads = "past" if causal else "both"
        taps, side = (5, "future") if causal else (7, "both")
        self.conv_pre = Conv(config.in_channels, channels[0], taps, reads=side)
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        sizes = config.source_resblock_kernel_sizes, config.source_resblock_dilation_sizes
        ups = zip(config.upsample_rates, config.upsample_kernel_sizes, *sizes, strict=True)
        branches = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        for stage, (rate, kernel, size, dilations) in enumerate(ups):
            width = channels[stage + 1]
            down = math.prod(config.upsample_rates[stage + 1 :])  # from spectra to this resolution
            self.ups.append((CausalUp if causal else Up)(channels[stage], width, kernel, rate))
            bins, taps = config.istft_n_fft + 2, 2 * down if down > 1 else 1
            self.source_downs.append(Conv(bins, width, taps, down, reads=reads))
            self.source_resblocks.append(ResBlock(width, size, dilations, causal))
            self.resblocks.extend(ResBlock(width, *branch, causal) for branch in branches)
        self.conv_post = Conv(channels[-1], config.istft_n_fft + 2, 7, reads=reads)

    @property
    def device(self) -> torch.device:
        return self.conv_post.weight.device

    @cached_property
    def lookahead(self) -> int:
        """Samples by which the wave of a stream stays behind its mel: 9268 (386 ms) of S3Gen, 9508 with source v2,
        1924 (80 ms) with v3.

        Counted on a network of the same kernels, as narrow as can be, for 64 frames.
        """
        sizes = {"base_channels": 2 ** len(self.ups), "f0_predictor_cond_channels": 1, "nb_harmonics": 0}
        narrow = replace(self.config, arithmetic="exact", **sizes)
        mel = torch.zeros(1, self.config.in_channels, 64)
        tiny = HiFTNetModel(narrow)
        return 64 * self.config.hop_length - tiny.step(mel, tiny.init_state())[0].shape[-1]

    # Whole mels --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def inference(
        self,
        speech_feat: Tensor,
        cache_source: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Wave (B, T * hop_length) in [-1, 1] and source (B, 1, T * hop_length) of log-mels, float32.

        Args:
            speech_feat: (B, 80, T) log-mels (natural logarithm, `MEL_24K_80`).
            cache_source: (B or 1, 1, M) takes the place of the first M samples of the source, as published streams
                do it; `step` needs nothing of the kind.
            lengths: (B,) frames of each row, independent of the other rows, and zero beyond.
            generator: draws as the published code does; one per row makes rows independent of each other. None:
                torch's own generator; with source v3 the noise of the release.
            seed: instead, values that depend on seed and position only (one seed for all rows or one each), the
                same on all devices, in batches and in streams.

        Raises AudioError for a mel of another shape, with NaN, or without frames; ConfigError for lengths, seeds or
        generators that do not fit it, or both of these.
        """
        rows = self._check(speech_feat, lengths)
        if not speech_feat.shape[-1]:
            raise AudioError("a mel without frames was given: at least one is needed")
        if generator is not None and seed is not None:
            raise ConfigError("both generator and seed were given: one of them says what the noise is")
        padding = WHOLE if lengths is None else self._ragged(lengths.to(self.device), speech_feat.shape[-1])
        sines, hop = self.config.nb_harmonics + 1, self.config.hop_length
        if seed is not None:
            draws: Draws = self._keyed(seed, len(rows))
        elif generator is None and self.config.source == "v3":
            draws = ReleasedDraws(len(rows), sines)
        else:
            draws = GivenDraws.published(generator, [n * hop for n in rows], sines, self.config.source)
        mel = speech_feat.to(self.device)
        f0 = padding.clear(self.f0_predictor(mel, padding)[:, None])[:, 0]
        source = padding.clear(self.m_source(f0, draws, padding))
        if cache_source is not None:
            source[..., : cache_source.shape[-1]] = cache_source
        return padding.clear(self.decode(mel, source, padding)[:, None])[:, 0], source

    def decode(self, mel: Tensor, source: Tensor, padding: Padding = WHOLE) -> Tensor:
        """Wave (B, T * hop) of a mel (B, 80, T) and a source (B, 1, T * hop); differentiable."""
        spectrum = self.stft.of_wave(source.float(), padding).to(self.conv_pre.weight.dtype)
        x = self.conv_pre(mel.to(spectrum.dtype), padding)
        branches = len(self.config.resblock_kernel_sizes)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.config.lrelu_slope), padding)
            if stage == len(self.ups) - 1:
                x = padding.mirror("last", x, 1, 0)  # spectra are one more than hops
            pitch = self.source_resblocks[stage](self.source_downs[stage](spectrum, padding), padding)
            x, pitch = padding.join(("source", stage), x, pitch)
            x = pitch + x  # in pitch's memory layout, which convolutions want
            blocks = self.resblocks[stage * branches : (stage + 1) * branches]
            outputs = padding.join(("blocks", stage), *(block(x, padding) for block in blocks))
            x = reduce(torch.add, outputs) / branches
        x = self.conv_post(F.leaky_relu(x, _LAST_SLOPE), padding)
        limit = self.config.audio_limit
        return self.stft.to_wave(x, padding).clamp(-limit, limit)

    # Streams -----------------------------------------------------------------------------------------------

    def init_state(self, batch: int = 1, seed: int | Sequence[int] = 0) -> HiFTState:
        """The state before the first chunk; seed as in `inference`, whose wave the stream gives."""
        if self.config.arithmetic == "published":
            raise ConfigError("arithmetic='published' cannot be streamed: build it with arithmetic='exact'")
        return HiFTState(self._keyed(seed, batch))

    def step(self, mel: Tensor, state: HiFTState, last: bool = False) -> tuple[Tensor, HiFTState]:
        """The wave (B, n) that the next frames (B, 80, T >= 0) settle, and the state after them.

        The wave stays `lookahead` samples behind the frames, until `last` gives all that remains.
        """
        wave, _, state = self._advance(mel, state, last)
        return wave, state

    def stream(self, mels: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Waves (1, n) and sources (1, 1, m) of one mel in pieces (1, 80, T), together those of `inference`."""
        state, mel = self.init_state(1, seed), None
        for mel in mels:
            wave, source, state = self._advance(mel, state)
            yield wave, source
        if mel is not None:
            yield self._advance(mel[..., :0], state, True)[:2]

    @torch.inference_mode()
    def _advance(self, mel: Tensor, state: HiFTState, last: bool = False) -> tuple[Tensor, Tensor, HiFTState]:
        """The wave, the source that drives it, and the state after."""
        rows = self._check(mel, None)
        if state.ended or len(rows) != len(state.draws.seeds):
            raise ConfigError(
                f"{len(rows)} rows were given to a stream of {len(state.draws.seeds)} that "
                f"{'has ended' if state.ended else 'goes on'}: start another with init_state"
            )
        frames = state.frames + mel.shape[-1]
        if last and not frames:
            raise AudioError("a stream ended without any frame: at least one is needed")
        padding = StreamPadding(state.layers, state.samples, last)
        mel = mel.to(self.device)
        source = self.m_source(self.f0_predictor(mel, padding), state.draws, padding)
        wave = self.decode(mel, source, padding)
        samples = state.samples + source.shape[-1]
        return wave, source, HiFTState(state.draws, padding.state, frames, samples, last)

    def _keyed(self, seed: int | Sequence[int], rows: int) -> KeyedDraws:
        seeds = (seed,) * rows if isinstance(seed, int) else tuple(seed)
        if len(seeds) != rows:
            raise ConfigError(f"{len(seeds)} seeds were given for {rows} rows: one, or one for each row")
        return KeyedDraws(seeds, self.config.nb_harmonics + 1, self.config.source == "v3")

    # Checks ------------------------------------------------------------------------------------------------

    def _check(self, mel: Tensor, lengths: Tensor | None) -> list[int]:
        """Frames of each row."""
        bands = self.config.in_channels
        if mel.dim() != 3 or mel.shape[1] != bands or not mel.is_floating_point():
            raise AudioError(
                f"a mel of shape {tuple(mel.shape)}, {mel.dtype} was given: (batch, {bands}, frames) of floats is "
                "accepted"
            )
        if not bool(mel.isfinite().all()):
            raise AudioError("the mel holds NaN or infinite values: compute it from finite samples")
        if lengths is None:
            return [mel.shape[-1]] * len(mel)
        rows = lengths.tolist()
        if len(rows) != len(mel) or not all(1 <= n <= mel.shape[-1] for n in rows):
            raise ConfigError(f"lengths {rows} were given for a mel {tuple(mel.shape)}: one per row, 1 to T")
        return rows

    def _ragged(self, lengths: Tensor, frames: int) -> RaggedPadding:
        """Ends of rows at each resolution of the network."""
        widths = (*self.config.widths, self.config.hop_length)
        known = {frames * width: lengths * width for width in widths}
        spectra = self.config.widths[-1]
        return RaggedPadding(known | {frames * spectra + 1: lengths * spectra + 1})

    # Weights and training ----------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The 24 kHz network of hift.pt; config={"source": "v1"} or "v2" says which sines, as weights cannot but of v3.

        A network with other settings takes its whole HiFTNetConfig.
        """
        ours = hift_from_published(state)
        if not isinstance(config, HiFTNetConfig):
            if config is not None and (not isinstance(config, Mapping) or set(config) != {"source"}):
                raise ConfigError(
                    f'config={config!r} was given: {{"source": "v1"}} or "v2" says which sines drive it'
                )
            config = hift_config(ours, None if config is None else config["source"])
        return cls.with_weights(config, ours, "of the vocoder")

    @classmethod
    def remove_weight_norm(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return fold_weight_norm(state)

    def add_weight_norm(self) -> "HiFTNetModel":
        """Train with weight norm on the convolutions that the published network has it on. Nothing changes else."""
        for name, conv in list(self.named_modules()):
            if isinstance(conv, nn.Conv1d | Up) and not name.startswith("source_downs"):
                weight_norm(conv)
        return self


def trim_fade(wave: Tensor, sample_rate: int = 24000) -> Tensor:
    """Chatterbox's start of a synthesis (B, N): 20 ms of silence, then 20 ms of a raised cosine.

    It hides what spills over from the prompt's last frame.
    """
    quiet = sample_rate // 50
    ramp = (torch.cos(torch.linspace(math.pi, 0, quiet, device=wave.device)) + 1) / 2
    fade = torch.cat([torch.zeros_like(ramp), ramp])[: wave.shape[-1]].to(wave.dtype)
    return torch.cat([wave[..., : len(fade)] * fade, wave[..., len(fade) :]], -1)
