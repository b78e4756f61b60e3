"""The configuration of a whole S3Gen: those of its parts, and the tokens that it speaks."""

from dataclasses import dataclass, field, replace

from vokens.audio.mel import MEL_24K_80, WHISPER_128
from vokens.errors import ConfigError
from vokens.models.s3gen.config import S3GenConfig
from vokens.models.s3gen.hift_config import S3GEN_24K, HiFTNetConfig
from vokens.models.s3tokenizer.config import RELEASES, S3TokenizerConfig
from vokens.nn.campplus import EMBEDDING

TOKENS_OF = {
    "conv": "speech_tokenizer_v2_25hz",
    "dit": "speech_tokenizer_v3_25hz",
}  # that releases have learnt


@dataclass(frozen=True)
class S3GenModelConfig:
    """Sizes of all parts.

    Attributes:
        tokenizer: of a reference's speech; None for a model that has none, and speaks in voices made elsewhere.
        speaker_encoder: whether CAM++ is inside.
        tokens, tokens_fingerprint: name and weights of the tokenizer whose tokens are spoken; an empty
            fingerprint leaves it to the name, as of published tokenizers, which stand in several files.
        fade: begin with 20 ms of silence and a 20 ms fade, as Chatterbox does.
    """

    flow: S3GenConfig = field(default_factory=S3GenConfig)
    mel2wav: HiFTNetConfig = field(default_factory=lambda: replace(S3GEN_24K, source="v2"))
    tokenizer: S3TokenizerConfig | None = field(default_factory=S3TokenizerConfig)
    speaker_encoder: bool = True
    tokens: str = "speech_tokenizer_v2_25hz"
    tokens_fingerprint: str = ""
    fade: bool = False

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
            raise ConfigError(
                f"speaker_embed_dim={flow.speaker_embed_dim} was given: CAM++ makes {EMBEDDING} numbers"
            )
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
