"""Sizes of S3Gen and the facts in which its published dialects differ.

Names of sizes are those of the published S3Gen page, so that its configurations mean the same here.
"""

from dataclasses import dataclass, replace
from typing import Literal

from vokens.errors import ConfigError
from vokens.nn.streaming import Chunks


@dataclass(frozen=True)
class S3GenConfig:
    """Sizes and dialect of S3Gen; the defaults are CosyVoice 2 (arXiv 2412.10117) as published.

    Attributes:
        vocab_size: number of speech tokens, 3 ** 8 of S3Tokenizer v2.
        network: "conv", a conformer over tokens and convolutions with attention over frames, or "dit" (CosyVoice 3), a
            look-ahead over tokens and a diffusion transformer over frames, whose depth is decoder_num_mid_blocks.
        encoder_num_up_blocks: layers after the upsampling by token_mel_ratio.
        pre_lookahead_len: tokens that the encoder sees ahead. pre_lookahead_channels: inside; 0 for as many as outside.
        decoder_n_blocks: transformer blocks after each resnet; decoder_num_mid_blocks: resnets between first and last.
        decoder_ff_mult: width of the feed-forward, in decoder_channels.
        meanflow: the estimator is told both ends of a step (IntMeanFlow, arXiv 2510.07979) and needs no guidance.
        time_scale: of the angles by which the estimator is told times. 1000, as published, makes it so sensitive to
            time that MeanFlow from scratch, which differentiates by time, needs 16 or less.
        cfm_steps: intervals of the grid. cfm_t_scheduler: "cosine", 1 - cos(pi t / 2), or "linear".
        cfm_solver: "euler", or "midpoint" with two evaluations per step.
        cfm_inference_cfg_rate: strength of classifier-free guidance, 0 for none. cfm_guidance_end: time from
            which it is skipped; 1 guides all steps, as published.
        noise: "fresh", drawn for each utterance, or "prefix", the same table for all, of which an utterance takes
            as many frames as it has: what streams need.
        chunk_size: tokens of a chunk under the streaming mask. num_left_chunks: chunks it sees before, -1 for all.
        not_final: what becomes of the last pre_lookahead_len tokens while more are to come: "context", they are
            seen ahead only, or "attend", they are encoded and dropped (Chatterbox before 0.1.7).
        prompt_cut: what is cut where a prompt's frames are not token_mel_ratio times its tokens: "both", or
            "tokens" (Chatterbox), which gives one frame too few for an odd count of prompt frames.
        source: of the vocoder's sines, as in HiFTNetConfig: "v1" (Chatterbox), "v2" or "v3" (CosyVoice 2, 3).
        mel_f_max: highest frequency of the mel, Hz.
    """

    network: Literal["conv", "dit"] = "conv"
    vocab_size: int = 6561
    token_embed_dim: int = 512
    speaker_embed_dim: int = 192
    encoder_attention_heads: int = 8
    encoder_linear_units: int = 2048
    encoder_num_blocks: int = 6
    encoder_num_up_blocks: int = 4
    pre_lookahead_len: int = 3
    pre_lookahead_channels: int = 0
    decoder_channels: int = 256
    decoder_n_blocks: int = 4
    decoder_num_mid_blocks: int = 12
    decoder_num_heads: int = 8
    decoder_attention_head_dim: int = 64
    decoder_ff_mult: int = 4
    meanflow: bool = False
    time_scale: float = 1000.0
    cfm_steps: int = 10
    cfm_t_scheduler: Literal["cosine", "linear"] = "cosine"
    cfm_solver: Literal["euler", "midpoint"] = "euler"
    cfm_inference_cfg_rate: float = 0.7
    cfm_guidance_end: float = 1.0
    noise: Literal["fresh", "prefix"] = "prefix"
    chunk_size: int = 25
    num_left_chunks: int = -1
    not_final: Literal["context", "attend"] = "context"
    prompt_cut: Literal["both", "tokens"] = "both"
    source: Literal["v1", "v2", "v3"] = "v2"
    sampling_rate: int = 24000
    mel_bins: int = 80
    mel_f_max: float = 8000.0
    token_mel_ratio: int = 2

    def __post_init__(self) -> None:
        choices = {
            "network": ("conv", "dit"),
            "cfm_t_scheduler": ("cosine", "linear"),
            "cfm_solver": ("euler", "midpoint"),
            "noise": ("fresh", "prefix"),
            "not_final": ("context", "attend"),
            "prompt_cut": ("both", "tokens"),
            "source": ("v1", "v2", "v3"),
        }
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}={getattr(self, name)!r} was given: {accepted} are accepted")
        free = {"cfm_inference_cfg_rate", "cfm_guidance_end", "num_left_chunks", "meanflow", *choices}
        free |= {"pre_lookahead_channels"}
        for name, value in vars(self).items():
            if name not in free and value < 1:
                raise ConfigError(f"{name}={value} was given: at least 1 is accepted")
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
DIALECTS: dict[str, S3GenConfig] = {
    "cosyvoice2": _COSYVOICE2,
    "cosyvoice3": _COSYVOICE3,
    "chatterbox": _CHATTERBOX,
    "chatterbox-turbo": replace(
        _CHATTERBOX, meanflow=True, cfm_steps=2, cfm_t_scheduler="linear", cfm_inference_cfg_rate=0.0
    ),
}
