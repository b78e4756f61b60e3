"""CosyVoice 3's token to wave, composed straight from its published tensors and paper, to measure against.

Everything is computed where it is needed: conditions and time in every step, both branches of the guidance as a batch
of two under a mask, and in a stream the whole history again for every chunk, as its authors' program does. The vocoder
is ours, on all of the mel.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.flow.noise import PrefixNoise
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import RATES, flow_to_published

LOOKAHEAD, CHUNK, GUIDANCE = 3, 25, 0.7  # tokens, tokens, strength


class Plain:
    """model: whose weights are used."""

    def __init__(self, model: S3GenModel) -> None:
        config = model.config.flow
        self.model, self.config, self.head_width = model, config, config.decoder_attention_head_dim
        self.weights = flow_to_published(model.flow.state_dict(), self.head_width)
        self.noise = PrefixNoise(config.mel_bins)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def conv(self, x: Tensor, name: str, left: int, right: int = 0, groups: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv1d(F.pad(x, (left, right)), weight, bias, groups=groups)

    def inference(self, tokens: Tensor, voice: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mel (1, 80, T) and wave (1, N) of tokens (n,)."""
        mel = self.mel(tokens, voice)
        return mel, self.model.mel2wav.inference(mel)[0]

    def stream(self, tokens: Tensor, voice: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Waves (n,) of tokens (N,) in chunks of 25, whose frames see those before them."""
        begin, offset, said = CHUNK - voice["prompt_token"].shape[1] % CHUNK, 0, 0
        mel = torch.zeros(1, self.config.mel_bins, 0)
        while offset < len(tokens):
            end = offset + begin if offset == 0 else offset + CHUNK
            final = end + LOOKAHEAD > len(tokens)
            heard = tokens if final else tokens[: end + LOOKAHEAD]
            piece = self.mel(heard, voice, masked=True, final=final)
            mel = torch.cat([mel, piece[:, :, 2 * offset :]], 2)
            wave = self.model.mel2wav.inference(mel)[0][0]
            yield wave[said:]
            said, offset = len(wave), len(tokens) if final else end

    def mel(
        self, tokens: Tensor, voice: Mapping[str, Tensor], masked: bool = False, final: bool = True
    ) -> Tensor:
        """masked: frames see their chunk and those before it. final: no token follows the last three."""
        prompt, given = voice["prompt_token"], voice["prompt_feat"]
        x = F.embedding(
            torch.cat([prompt, tokens[None]], 1), self.weights["input_embedding.weight"]
        ).transpose(1, 2)
        kept = x if final else x[:, :, :-LOOKAHEAD]
        inner = self.conv(x, "pre_lookahead_layer.conv1", 0, LOOKAHEAD if final else 0)
        mu = kept + self.conv(F.leaky_relu(inner), "pre_lookahead_layer.conv2", 2)
        mu = mu.repeat_interleave(2, 2)
        speaker = self.linear(F.normalize(voice["embedding"], dim=1), "spk_embed_affine_layer")
        frames, known = mu.shape[2], 2 * prompt.shape[1]
        cond = torch.zeros_like(mu)
        cond[:, :, :known] = given[:, :known].transpose(1, 2)
        place = torch.arange(frames)
        mask = torch.ones(frames, frames, dtype=torch.bool)
        if masked:
            mask = place[None] < (place[:, None] // (2 * CHUNK) + 1) * 2 * CHUNK
        x = self.noise.frames(0, frames).T[None]
        grid = 1 - torch.cos(torch.linspace(0, 1, self.config.cfm_steps + 1) * math.pi / 2)
        none = torch.zeros_like
        for t, following in pairwise(grid):
            both = [torch.cat([part, none(part)]) for part in (cond, mu, speaker)]
            with_it, without = self.velocity(torch.cat([x, x]), t.expand(2), *both, mask).split(1)
            x = x + (following - t) * ((1 + GUIDANCE) * with_it - GUIDANCE * without)
        return x[:, :, known:]

    def velocity(
        self, x: Tensor, t: Tensor, cond: Tensor, mu: Tensor, speaker: Tensor, mask: Tensor
    ) -> Tensor:
        """x, cond, mu (B, 80, T), t (B,), speaker (B, 80), mask (T, T): (B, 80, T)."""
        at = "decoder.estimator"
        rates = torch.exp(-torch.arange(128) * math.log(1e4) / 127)
        angles = 1000 * t[:, None] * rates
        time = self.linear(torch.cat([angles.sin(), angles.cos()], 1), f"{at}.time_embed.time_mlp.0")
        time = self.linear(F.silu(time), f"{at}.time_embed.time_mlp.2")
        spread = speaker[:, :, None].expand_as(mu)
        h = self.linear(torch.cat([x, cond, mu, spread], 1).transpose(1, 2), f"{at}.input_embed.proj")
        y = h.transpose(1, 2)
        for number in (1, 2):
            y = F.mish(self.conv(y, f"{at}.input_embed.conv_pos_embed.conv{number}.0", 30, groups=16))
        h = h + y.transpose(1, 2)
        for number in range(self.config.decoder_num_mid_blocks):
            h = self.block(h, time, mask, f"{at}.transformer_blocks.{number}")
        scale, shift = self.linear(F.silu(time), f"{at}.norm_out.linear").chunk(2, 1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        return self.linear(h, f"{at}.proj_out").transpose(1, 2)

    def block(self, h: Tensor, time: Tensor, mask: Tensor, name: str) -> Tensor:
        parts = self.linear(F.silu(time), f"{name}.attn_norm.linear")[:, None].chunk(6, 2)
        shift, scale, gate, shift2, scale2, gate2 = parts
        x = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k, v = (self.linear(x, f"{name}.attn.to_{part}") for part in "qkv")
        q, k = self.turned(q), self.turned(k)
        q, k, v = (part.unflatten(2, (-1, self.head_width)).transpose(1, 2) for part in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        h = h + gate * self.linear(x, f"{name}.attn.to_out.0")
        x = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        x = F.gelu(self.linear(x, f"{name}.ff.ff.0.0"), approximate="tanh")
        return h + gate2 * self.linear(x, f"{name}.ff.ff.2")

    def turned(self, x: Tensor) -> Tensor:
        """Positions for the first head's columns of x (B, T, C)."""
        angles = torch.arange(x.shape[1])[:, None] * self.weights[RATES]
        a, b = x[:, :, : self.head_width].unflatten(2, (-1, 2)).unbind(3)
        pairs = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 3)
        return torch.cat([pairs.flatten(2), x[:, :, self.head_width :]], 2)
