"""Sizes of S3Gen: of its flow, with the facts in which releases differ, of its vocoder HiFT, and of the whole model.

Field names and defaults are those of the published S3Gen and HiFTNet pages, so that their configurations mean the same.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from vokens.audio.mel import MEL_24K_80, WHISPER_128
from vokens.checkpoint import later
from vokens.config import check_choices, check_positive
from vokens.errors import ConfigError
from vokens.models.s3tokenizer.config import RELEASES, S3TokenizerConfig
from vokens.nn.campplus import EMBEDDING
from vokens.nn.streaming import Chunks

# Tokenizers whose tokens releases have learnt, by the flow's network.
TOKENS_OF = {"conv": "speech_tokenizer_v2_25hz", "dit": "speech_tokenizer_v3_25hz"}
_DILATIONS = (1, 3, 5)


@dataclass(frozen=True)
class S3GenConfig:
    """Sizes of the flow and facts of a release; the defaults are CosyVoice 2 (arXiv 2412.10117) as published."""

    # "conv", a conformer over tokens and convolutions with attention over frames, or "dit" (CosyVoice 3), a
    # look-ahead over tokens and a diffusion transformer over frames, whose depth is decoder_num_mid_blocks.
    network: Literal["conv", "dit"] = "conv"
    vocab_size: int = 6561  # number of speech tokens, 3 ** 8 of S3Tokenizer v2
    token_embed_dim: int = 512
    speaker_embed_dim: int = 192
    encoder_attention_heads: int = 8
    encoder_linear_units: int = 2048
    encoder_num_blocks: int = 6
    encoder_num_up_blocks: int = 4  # layers after the upsampling by token_mel_ratio
    pre_lookahead_len: int = 3  # tokens that the encoder sees ahead
    pre_lookahead_channels: int = 0  # inside; 0 for as many as outside
    decoder_channels: int = 256
    decoder_n_blocks: int = 4  # transformer blocks after each resnet
    decoder_num_mid_blocks: int = 12  # resnets between first and last
    decoder_num_heads: int = 8
    decoder_attention_head_dim: int = 64
    decoder_ff_mult: int = 4  # width of the feed-forward, in decoder_channels
    # The estimator is told both ends of a step (IntMeanFlow, arXiv 2510.07979) and needs no guidance.
    meanflow: bool = False
    # Of the angles by which the estimator is told times. 1000, as published, makes it so sensitive to time that
    # MeanFlow from scratch, which differentiates by time, needs 16 or less.
    time_scale: float = 1000.0
    cfm_steps: int = 10  # intervals of the grid
    cfm_t_scheduler: Literal["cosine", "linear"] = "cosine"  # "cosine", 1 - cos(pi t / 2), or "linear"
    cfm_solver: Literal["euler", "midpoint"] = "euler"  # "midpoint" has two evaluations per step
    cfm_inference_cfg_rate: float = 0.7  # strength of classifier-free guidance, 0 for none
    cfm_guidance_end: float = 1.0  # time from which it is skipped; 1 guides all steps, as published
    # First of the mel_bins dims that is guided. A flow over cepstra leaves level and tilt alone, which guidance
    # exaggerates: with one step speech was 9.5 dB too loud.
    cfm_guidance_from: int = later(0)
    # Scale of the initial noise of those dims. One step of a small flow leaves a part of the noise in its output.
    cfm_temperature: float = later(1.0)
    # "fresh", drawn for each utterance, or "prefix", the same table for all, of which an utterance takes as many
    # frames as it has: what streams need.
    noise: Literal["fresh", "prefix"] = "prefix"
    chunk_size: int = 25  # tokens of a chunk under the streaming mask
    num_left_chunks: int = -1  # chunks it sees before, -1 for all
    # What becomes of the last pre_lookahead_len tokens while more are to come: "context", they are seen ahead only,
    # or "attend", they are encoded and dropped (Chatterbox before 0.1.7).
    not_final: Literal["context", "attend"] = "context"
    # What is cut where a prompt's frames are not token_mel_ratio times its tokens: "both", or "tokens"
    # (Chatterbox), which gives one frame too few for an odd count of prompt frames.
    prompt_cut: Literal["both", "tokens"] = "both"
    # Of the vocoder's sines, as in HiFTNetConfig: "v1" (Chatterbox), "v2" or "v3" (CosyVoice 2, 3).
    source: Literal["v1", "v2", "v3"] = "v2"
    sampling_rate: int = 24000
    mel_bins: int = 80
    mel_f_max: float = 8000.0  # highest frequency of the mel, Hz
    token_mel_ratio: int = 2

    def __post_init__(self) -> None:
        check_choices(self)
        free = (
            "cfm_inference_cfg_rate",
            "cfm_guidance_end",
            "cfm_guidance_from",
            "cfm_temperature",
            "num_left_chunks",
            "pre_lookahead_channels",
        )
        check_positive(self, free)
        if self.network == "dit":
            self._check_dit()
        elif self.token_embed_dim % (2 * self.encoder_attention_heads):
            raise ConfigError(
                f"token_embed_dim={self.token_embed_dim} was given: a multiple of twice the "
                f"{self.encoder_attention_heads} heads is accepted"
            )
        if self.meanflow and (self.cfm_solver != "euler" or self.cfm_inference_cfg_rate):
            raise ConfigError("meanflow takes Euler steps without guidance: cfm_inference_cfg_rate=0")
        if self.cfm_inference_cfg_rate < 0:
            raise ConfigError(f"cfm_inference_cfg_rate={self.cfm_inference_cfg_rate} was given: 0 or more")
        if self.cfm_temperature < 0:
            raise ConfigError(f"cfm_temperature={self.cfm_temperature} was given: 0 or more")
        if not 0 <= self.cfm_guidance_from <= self.mel_bins:
            raise ConfigError(
                f"cfm_guidance_from={self.cfm_guidance_from} was given: 0 to mel_bins={self.mel_bins} is accepted"
            )
        self.chunks(0)  # checks chunk_size and num_left_chunks

    def _check_dit(self) -> None:
        if self.token_embed_dim != self.mel_bins or self.decoder_channels % 16:
            raise ConfigError(
                f"token_embed_dim={self.token_embed_dim} and decoder_channels={self.decoder_channels} were given: with "
                f'network="dit" the {self.mel_bins} of mel_bins and a multiple of 16 are accepted'
            )
        if self.decoder_attention_head_dim % 2:
            raise ConfigError(
                f"decoder_attention_head_dim={self.decoder_attention_head_dim} was given: rotation takes an even number"
            )

    @property
    def lookahead_channels(self) -> int:
        """Channels inside the look-ahead."""
        return self.pre_lookahead_channels or self.token_embed_dim

    def chunks(self, phase: int = 0) -> Chunks:
        """The streaming mask, in tokens."""
        return Chunks(self.chunk_size, self.num_left_chunks, phase)


@dataclass(frozen=True)
class HiFTNetConfig:
    """Sizes of HiFT, mel to wave (HiFTNet, arXiv 2309.09493); lists are accepted where tuples stand. The defaults are
    the 22.05 kHz network of CosyVoice 1; `S3GEN_24K` is that of CosyVoice 2, 3 and Chatterbox but for the source.
    """

    in_channels: int = 80  # mel bands
    base_channels: int = 512  # width before the first upsampling, halved at each
    nb_harmonics: int = 8  # overtones of the source beside the fundamental
    sampling_rate: int = 22050  # of the wave, Hz
    nsf_alpha: float = 0.1  # amplitude of the sines
    nsf_sigma: float = 0.003  # deviation of the noise on voiced samples
    nsf_voiced_threshold: float = 10.0  # Hz; frames at or below it are unvoiced
    upsample_rates: tuple[int, ...] = (8, 8)  # of the transposed convolutions
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)  # of the transposed convolutions
    istft_n_fft: int = 16  # of the spectra that the network predicts, in samples, as the hop
    istft_hop_len: int = 4
    # Of the blocks after each upsampling, whose mean is taken.
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = (_DILATIONS,) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)  # of the source's block at each upsampling
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = (_DILATIONS,) * 2
    lrelu_slope: float = 0.1  # before each upsampling
    audio_limit: float = 0.99  # the wave is clamped to +- this
    f0_predictor_in_channels: int = 80  # of the pitch predictor
    f0_predictor_cond_channels: int = 512  # of the pitch predictor
    # Which sines: "v1" accumulates phase sample by sample (Chatterbox, CosyVoice 1), "v2" at the centres of frames
    # with straight lines between (CosyVoice 2): their weights are interchangeable. "v3" holds the phase over a
    # frame, its noise is uniform in [0, 1), and the network is causal but for a look-ahead of three frames in pitch
    # and of four in mel (CosyVoice 3).
    source: Literal["v1", "v2", "v3"] = "v1"
    # Of pitch and phase. "exact" is float64, so that neither batches nor minutes change anything. "published" is
    # float32, whose rounding moves the source of a 170 Hz voice by up to 1e-4 (v1) or 5e-4 (v2) after 2 s and more
    # later, and cannot be streamed: for comparison with published code.
    arithmetic: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        for name in [each.name for each in fields(self)]:
            if isinstance(value := getattr(self, name), list | tuple):
                frozen = tuple(tuple(item) if isinstance(item, list) else item for item in value)
                object.__setattr__(self, name, frozen)
        check_choices(self)
        stages, source = len(self.upsample_rates), "source_resblock_"
        for name in ("upsample_kernel_sizes", f"{source}kernel_sizes", f"{source}dilation_sizes"):
            if (count := len(getattr(self, name))) != stages:
                raise ConfigError(f"{name} has {count} entries: upsample_rates has {stages}")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError(
                f"{len(self.resblock_kernel_sizes)} resblock_kernel_sizes and "
                f"{len(self.resblock_dilation_sizes)} resblock_dilation_sizes were given: one each is needed"
            )
        kernels = (*self.resblock_kernel_sizes, *self.source_resblock_kernel_sizes)
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ConfigError(f"resblock kernels {kernels} were given: odd sizes are accepted")
        pairs = list(zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True))
        if not self.causal and any(kernel < rate or (kernel - rate) % 2 for kernel, rate in pairs):
            raise ConfigError(f"upsampling {pairs} (kernel, rate): a kernel is its rate plus an even number")
        if self.base_channels % 2**stages:
            raise ConfigError(f"base_channels={self.base_channels} is halved {stages} times: use a multiple")
        n_fft, hop, bands = self.istft_n_fft, self.istft_hop_len, self.f0_predictor_in_channels
        if n_fft % (2 * hop):
            raise ConfigError(f"istft_n_fft={n_fft} must be a multiple of twice istft_hop_len={hop}")
        if bands != self.in_channels:
            raise ConfigError(f"f0_predictor_in_channels={bands} must be in_channels={self.in_channels}")

    @property
    def causal(self) -> bool:
        """Whether convolutions read the past alone, but for the look-ahead of pitch and mel."""
        return self.source == "v3"

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop_len

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns per mel frame at each resolution of the network: mel, after each upsampling."""
        return tuple(math.prod(self.upsample_rates[:stage]) for stage in range(len(self.upsample_rates) + 1))


S3GEN_24K = HiFTNetConfig(
    sampling_rate=24000,
    upsample_rates=(8, 5, 3),
    upsample_kernel_sizes=(16, 11, 7),
    source_resblock_kernel_sizes=(7, 7, 11),
    source_resblock_dilation_sizes=(_DILATIONS,) * 3,
)


@dataclass(frozen=True)
class S3GenModelConfig:
    """Sizes of all parts."""

    flow: S3GenConfig = field(default_factory=S3GenConfig)
    mel2wav: HiFTNetConfig = field(default_factory=lambda: replace(S3GEN_24K, source="v2"))
    # Of a reference's speech; None for a model that has none, and speaks in voices made elsewhere.
    tokenizer: S3TokenizerConfig | None = field(default_factory=S3TokenizerConfig)
    speaker_encoder: bool = True  # whether CAM++ is inside
    tokens: str = "speech_tokenizer_v2_25hz"  # name of the tokenizer whose tokens are spoken
    # Its weights; empty leaves it to the name, as of published tokenizers, which stand in several files.
    tokens_fingerprint: str = ""
    fade: bool = False  # begin with 20 ms of silence and a 20 ms fade, as Chatterbox does

    def __post_init__(self) -> None:
        flow, vocoder, tokenizer = self.flow, self.mel2wav, self.tokenizer
        rate, hop = MEL_24K_80.sample_rate, MEL_24K_80.hop_length
        rates = (flow.sampling_rate, vocoder.sampling_rate, vocoder.hop_length)
        if rates != (rate, rate, hop):
            raise ConfigError(
                f"flow at {rates[0]} Hz and mel2wav at {rates[1]} Hz with {rates[2]} samples per frame were given: "
                f"mels of references have {rate} Hz and {hop} samples, so all must"
            )
        if flow.mel_bins != vocoder.in_channels:
            raise ConfigError(
                f"the flow makes {flow.mel_bins} mel bands and mel2wav takes {vocoder.in_channels}: give equal ones"
            )
        if (flow.source == "v3") != vocoder.causal:
            raise ConfigError(
                f"a flow for sines {flow.source} and a vocoder of {vocoder.source} were given: CosyVoice 3's flow and "
                "vocoder belong together, for their mels reach higher than others'"
            )
        if self.speaker_encoder and flow.speaker_embed_dim != EMBEDDING:
            raise ConfigError(f"speaker_embed_dim={flow.speaker_embed_dim}: CAM++ makes {EMBEDDING} numbers")
        if tokenizer is None:
            return
        if tokenizer.codebook_size > flow.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.codebook_size} tokens and the flow knows {flow.vocab_size}: "
                "set vocab_size to as many"
            )
        seconds = WHISPER_128.hop_length * tokenizer.hop / WHISPER_128.sample_rate
        if abs(seconds - flow.token_mel_ratio * hop / rate) > 1e-9:
            raise ConfigError(
                f"a token of {1000 * seconds:g} ms and {flow.token_mel_ratio} frames of {1000 * hop / rate:g} ms "
                "were given: both must last equally long"
            )

    @classmethod
    def of_flow(cls, flow: S3GenConfig) -> "S3GenModelConfig":
        """The published model around a flow: its vocoder, S3Tokenizer v2 or v3, and the fade where Chatterbox's
        prompts may spill over."""
        bands = flow.mel_bins
        vocoder = replace(S3GEN_24K, in_channels=bands, f0_predictor_in_channels=bands, source=flow.source)
        tokens = TOKENS_OF[flow.network]
        return cls(flow, vocoder, RELEASES[tokens], tokens=tokens, fade=flow.prompt_cut == "tokens")


_COSYVOICE2 = S3GenConfig()
_CHATTERBOX = replace(_COSYVOICE2, noise="fresh", not_final="attend", prompt_cut="tokens", source="v1")
_COSYVOICE3 = replace(
    _COSYVOICE2,
    network="dit",
    token_embed_dim=80,
    pre_lookahead_channels=1024,
    decoder_channels=1024,
    decoder_num_mid_blocks=22,
    decoder_num_heads=16,
    decoder_ff_mult=2,
    source="v3",
    mel_f_max=12000.0,
)
MEANFLOW: dict[str, Any] = {
    "meanflow": True,
    "cfm_steps": 2,
    "cfm_t_scheduler": "linear",
    "cfm_inference_cfg_rate": 0.0,
}
DIALECTS: dict[str, S3GenConfig] = {
    "cosyvoice2": _COSYVOICE2,
    "cosyvoice3": _COSYVOICE3,
    "chatterbox": _CHATTERBOX,
    "chatterbox-turbo": replace(_CHATTERBOX, **MEANFLOW),
}
