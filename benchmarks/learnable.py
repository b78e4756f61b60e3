"""Learnable-Speech's two stages beside a straightforward composition of the same networks, in one run.

    python benchmarks/learnable.py [--full] [--threads 1] [--product torch onednn] [--repeats 5]

The composition is written here in the published manner: layouts and losses row by row over all places, attention of
three products with its scores in memory, convolutions over channels first, all conditions at every step of the solver,
a norm read back for each gradient. It has the same weights, and losses and latents must agree before anything is timed.
Both sides take turns; the best of the repeats counts. --full: released sizes, otherwise small ones for a CPU.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import measure
import torch
from measure import Report, gflop, options
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.pop(0)  # this file's folder, where names of packages would find benchmarks

from vokens.flow import objective
from vokens.lm.sampling import COSYVOICE
from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.learnable.flow_config import latent_flow
from vokens.models.learnable.loss import label_loss
from vokens.models.s3gen.checkpoint import flow_to_published
from vokens.models.s3gen.flow import TokenToMel, Voice
from vokens.nn import product
from vokens.nn.masks import padding_mask
from vokens.train.flow_data import FlowBatch
from vokens.train.flow_learner import Draw, FlowLearner

SMALL_FLOW = {
    "mel_bins": 32,
    "token_embed_dim": 192,
    "encoder_attention_heads": 4,
    "encoder_linear_units": 512,
    "encoder_num_blocks": 3,
    "encoder_num_up_blocks": 2,
    "decoder_channels": 160,
    "decoder_n_blocks": 1,
    "decoder_num_mid_blocks": 4,
    "decoder_num_heads": 4,
    "decoder_attention_head_dim": 32,
}
SMALL_LM = Qwen2Sizes(1000, 192, 576, 4, 4, 2, 4096)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def take_turns(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Best wall time of each call in seconds."""
    best = [math.inf] * len(calls)
    for _ in range(repeats):
        for place, call in enumerate(calls):
            best[place] = min(best[place], measure.best(call, 1)[1])
    return best


# The composition: stage 1 ----------------------------------------------------------------------------------------


def of_transformers(lm: LearnableLM) -> Any:
    """transformers' Qwen2Model over the very parameters of a language model's backbone."""
    from transformers import Qwen2Config, Qwen2Model

    sizes, own = lm.config.backbone, dict(lm.backbone.named_parameters())
    rope = {"rope_type": "default", "rope_theta": sizes.rope_theta}
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=sizes.max_positions,
            rope_parameters=rope,
            rms_norm_eps=sizes.norm_eps,
        )
    )
    for path, module in model.named_modules():
        for name in module._parameters:
            if module._parameters[name] is not None:
                module._parameters[name] = own[f"{path}.{name}"]
    return model.train(lm.training)


def plain_lm_loss(
    lm: LearnableLM, backbone: Any, text: list[Tensor], speech: list[Tensor], speaker: Tensor
) -> Tensor:
    """Unistream sequences put together utterance by utterance, scores and divergence at every place."""
    words = lm.backbone.embed_tokens
    rows, targets = [], []
    for ids, codes, voice in zip(text, speech, speaker, strict=True):
        start, task = lm.marks.weight[0:1], lm.marks.weight[1:2]
        rows.append(torch.cat([start, voice[None], words(ids), task, lm.speech_embedding(codes)]))
        quiet = torch.full((2 + len(ids),), -1)
        targets.append(torch.cat([quiet, codes, torch.tensor([lm.config.end])]))
    lengths = [len(row) for row in rows]
    x = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1.0)
    target = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-1)
    mask = padding_mask(torch.tensor(lengths), x.shape[1])
    scores = lm.head(backbone(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state)
    flat, asked = target.flatten(), target.flatten() >= 0
    wanted = torch.zeros(len(flat), scores.shape[2])
    wanted.scatter_(1, flat.clamp(min=0)[:, None], 1.0)
    divergence = F.kl_div(scores.flatten(0, 1).log_softmax(1), wanted, reduction="none").sum(1)
    return divergence.masked_fill(~asked, 0).sum() / asked.sum()


@torch.inference_mode()
def recomputed(
    lm: LearnableLM, backbone: Any, text: Tensor, count: int, generator: torch.Generator
) -> list[int]:
    """`count` tokens, the whole sequence being read again for each."""
    marks, sampler, found = lm.marks.weight, COSYVOICE, []
    voice = torch.zeros_like(marks[:1])
    x = torch.cat([marks[:1], voice, lm.backbone.embed_tokens(text), marks[1:]])
    while len(found) < count:
        scores = lm.head(backbone(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, -1])
        scores[lm.config.speech_tokens :] = -torch.inf
        found.append(sampler.draw(scores, found, generator))
        x = torch.cat([x, lm.speech_embedding.weight[found[-1:]]])
    return found


# The composition: stage 2. Modules are named as in the published weights -------------------------------------------


class PlainRelativeAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(width, width) for _ in range(3))
        self.linear_out, self.linear_pos = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.linear_q(x)), split(self.linear_k(x)), split(self.linear_v(x))
        p = split(self.linear_pos(table)[None])
        content = (q + self.pos_bias_u[:, None]) @ k.transpose(2, 3)
        place = (q + self.pos_bias_v[:, None]) @ p.transpose(2, 3)
        place = F.pad(place, (1, 0)).reshape(*place.shape[:2], -1, place.shape[2])[:, :, 1:]
        place = place.reshape(*q.shape[:3], -1)[..., : q.shape[2]]
        scores = (content + place) / math.sqrt(q.shape[3])
        weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(3).masked_fill(~mask[:, None], 0.0)
        return self.linear_out((weights @ v).transpose(1, 2).flatten(2))


class PlainConformerLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_mha, self.norm_ff = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.self_attn = PlainRelativeAttention(width, heads)
        self.feed_forward = nn.ModuleDict({"w_1": nn.Linear(width, hidden), "w_2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), mask, table)
        return x + self.feed_forward["w_2"](F.silu(self.feed_forward["w_1"](self.norm_ff(x))))


class PlainEncoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, heads, hidden = (
            config.token_embed_dim,
            config.encoder_attention_heads,
            config.encoder_linear_units,
        )

        def layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(PlainConformerLayer(width, heads, hidden) for _ in range(count))

        def embed() -> nn.ModuleDict:
            return nn.ModuleDict({"out": nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))})

        self.width, self.ratio, self.ahead = width, config.token_mel_ratio, config.pre_lookahead_len
        self.embed, self.up_embed = embed(), embed()
        self.pre_lookahead_layer = nn.ModuleDict(
            {"conv1": nn.Conv1d(width, width, self.ahead + 1), "conv2": nn.Conv1d(width, width, 3)}
        )
        self.encoders, self.up_encoders = (
            layers(config.encoder_num_blocks),
            layers(config.encoder_num_up_blocks),
        )
        self.up_layer = nn.ModuleDict({"conv": nn.Conv1d(width, width, 2 * self.ratio + 1)})
        self.after_norm = nn.LayerNorm(width)

    def table(self, count: int) -> Tensor:
        distance = torch.arange(count - 1, -count, -1).float()[:, None]
        rates = torch.exp(torch.arange(0, self.width, 2).float() * -(math.log(10000.0) / self.width))
        table = torch.zeros(2 * count - 1, self.width)
        table[:, 0::2], table[:, 1::2] = (distance * rates).sin(), (distance * rates).cos()
        return table

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = padding_mask(lengths, x.shape[1])[:, None]
        x = self.embed["out"](x) * math.sqrt(self.width) * mask.transpose(1, 2)
        y = F.pad(x.transpose(1, 2), (0, self.ahead))
        y = F.pad(F.leaky_relu(self.pre_lookahead_layer["conv1"](y)), (2, 0))
        x = x + self.pre_lookahead_layer["conv2"](y).transpose(1, 2)
        table = self.table(x.shape[1])
        for layer in self.encoders:
            x = layer(x, mask, table)
        y = F.interpolate(x.transpose(1, 2), scale_factor=float(self.ratio), mode="nearest")
        x = self.up_layer["conv"](F.pad(y, (2 * self.ratio, 0))).transpose(1, 2)
        mask = padding_mask(lengths * self.ratio, x.shape[1])[:, None]
        x = self.up_embed["out"](x) * math.sqrt(self.width)
        table = self.table(x.shape[1])
        for layer in self.up_encoders:
            x = layer(x, mask, table)
        return self.after_norm(x)


class PlainBlock(nn.Module):
    """A causal convolution, a norm over channels through two transpositions, Mish."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"0": nn.Conv1d(inner, width, 3), "2": nn.LayerNorm(width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.block["0"](F.pad(x * mask, (2, 0)))
        return F.mish(self.block["2"](y.transpose(1, 2)).transpose(1, 2)) * mask


class PlainResnet(nn.Module):
    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.block1, self.block2 = PlainBlock(inner, width), PlainBlock(width, width)
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(4 * width, width))
        self.res_conv = nn.Conv1d(inner, width, 1)

    def forward(self, x: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        y = self.block1(x, mask) + self.mlp(time)[..., None]
        return self.block2(y, mask) + self.res_conv(x * mask)


class PlainTransformer(nn.Module):
    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = {f"to_{x}": nn.Linear(width, heads * head, bias=False) for x in "qkv"}
        self.attn1 = nn.ModuleDict({**parts, "to_out": nn.ModuleList([nn.Linear(heads * head, width)])})
        up = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)})
        self.ff = nn.ModuleDict({"net": nn.ModuleDict({"0": up, "2": nn.Linear(4 * width, width)})})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            self.attn1[f"to_{part}"](y).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in "qkv"
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + bias[:, None]).softmax(3)
        x = x + self.attn1["to_out"][0]((weights @ v).transpose(1, 2).flatten(2))
        net = self.ff["net"]
        return x + net["2"](F.gelu(net["0"]["proj"](self.norm3(x))))


class PlainEstimator(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, bins = config.decoder_channels, config.mel_bins
        self.bins = bins

        def stage(inner: int, *last: nn.Module) -> nn.ModuleList:
            blocks = nn.ModuleList(
                PlainTransformer(width, config.decoder_num_heads, config.decoder_attention_head_dim)
                for _ in range(config.decoder_n_blocks)
            )
            return nn.ModuleList([PlainResnet(inner, width), blocks, *last])

        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(4 * bins, 4 * width), "linear_2": nn.Linear(4 * width, 4 * width)}
        )
        self.down_blocks = nn.ModuleList([stage(4 * bins, nn.Conv1d(width, width, 3))])
        self.mid_blocks = nn.ModuleList(stage(width) for _ in range(config.decoder_num_mid_blocks))
        self.up_blocks = nn.ModuleList([stage(2 * width, nn.Conv1d(width, width, 3))])
        self.final_block, self.final_proj = PlainBlock(width, width), nn.Conv1d(width, bins, 1)

    def forward(self, x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spk: Tensor, cond: Tensor) -> Tensor:
        half = 2 * self.bins
        angles = 1000 * t[:, None] * torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
        time = self.time_mlp["linear_2"](
            F.silu(self.time_mlp["linear_1"](torch.cat([angles.sin(), angles.cos()], 1)))
        )
        x = torch.cat([x, mu, spk[..., None].expand(-1, -1, x.shape[2]), cond], 1)
        bias = (1.0 - mask.bool().repeat(1, x.shape[2], 1).float()) * -1e10

        def stage(parts: Any, x: Tensor) -> Tensor:
            x = parts[0](x, mask, time).transpose(1, 2).contiguous()
            for block in parts[1]:
                x = block(x, bias)
            return x.transpose(1, 2).contiguous()

        x = skip = stage(self.down_blocks[0], x)
        x = self.down_blocks[0][2](F.pad(x * mask, (2, 0)))
        for parts in self.mid_blocks:
            x = stage(parts, x)
        x = stage(self.up_blocks[0], torch.cat([x, skip], 1))
        x = self.final_block(self.up_blocks[0][2](F.pad(x * mask, (2, 0))), mask)
        return self.final_proj(x * mask) * mask


class PlainFlow(nn.Module):
    """The published second stage without its speaker encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, bins = config.token_embed_dim, config.mel_bins
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_embed_dim, bins)
        self.encoder, self.encoder_proj = PlainEncoder(config), nn.Linear(width, bins)
        self.decoder = nn.ModuleDict({"estimator": PlainEstimator(config)})

    def given(self, tokens: Tensor, lengths: Tensor, voices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu = self.encoder_proj(self.encoder(self.input_embedding(tokens), lengths)).transpose(1, 2)
        mask = padding_mask(lengths * self.config.token_mel_ratio, mu.shape[2])[:, None].float()
        return mu, mask, self.spk_embed_affine_layer(F.normalize(voices, dim=1))

    def loss(self, batch: FlowBatch, draw: Draw) -> Tensor:
        mu, mask, spk = self.given(batch.tokens, batch.lengths, batch.voices)
        cond = torch.zeros_like(mu)
        for row, count in enumerate(draw.prompts.tolist()):
            cond[row, :, :count] = batch.frames[row, :, :count]
        noise, t = draw.noise.transpose(1, 2), draw.t[:, None, None]
        x = (1 - (1 - 1e-6) * t) * noise + t * batch.frames
        u = batch.frames - (1 - 1e-6) * noise
        keep = draw.conditioned.float()
        found = self.decoder["estimator"](
            x, mask, mu * keep[:, None, None], draw.t, spk * keep[:, None], cond * keep[:, None, None]
        )
        return F.mse_loss(found * mask, u * mask, reduction="sum") / (mask.sum() * u.shape[1])

    @torch.inference_mode()
    def generate(self, tokens: Tensor, voice: Tensor, noise: Tensor, steps: int, rate: float) -> Tensor:
        mu, mask, spk = self.given(tokens[None], torch.tensor([len(tokens)]), voice[None])
        x, times = noise.T[None], 1 - torch.cos(torch.linspace(0, 1, steps + 1) * math.pi / 2)
        nothing, none = torch.zeros_like(mu), torch.zeros_like(spk)
        for t, width in zip(times[:-1], times.diff(), strict=True):
            both = self.decoder["estimator"](
                torch.cat([x, x]),
                torch.cat([mask, mask]),
                torch.cat([mu, nothing]),
                t.expand(2),
                torch.cat([spk, none]),
                torch.cat([nothing, nothing]),
            )
            x = x + width * ((1 + rate) * both[:1] - rate * both[1:])
        return x[0]


# The comparisons ---------------------------------------------------------------------------------------------------


def training_step(model: nn.Module, loss: Callable[[], Tensor], published: bool) -> Callable[[], None]:
    """Loss, gradients, clipping and AdamW; the published loop reads each gradient's norm back, ours fuses AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=not published)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        if published:
            _ = math.sqrt(sum(p.grad.norm().item() ** 2 for p in model.parameters() if p.grad is not None))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def compare_training(
    report: Report,
    case: str,
    ours: tuple[nn.Module, Callable[[], Tensor]],
    plain: tuple[nn.Module, Callable[[], Tensor]],
) -> None:
    """Rows of a step of each (model, loss), and of ours in bfloat16 where this processor has it."""

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours[1]()

    steps = [training_step(*ours, False), training_step(*plain, True)]
    if product.fast(torch.bfloat16):
        steps.append(training_step(ours[0], half, False))
    mine, theirs, *rest = take_turns(report.repeats, *steps)
    report.add(case, mine, theirs, gflop=gflop(steps[0]))
    for best in rest:
        report.add(f"{case}, ours in bfloat16", best, theirs)


def compare_lm(report: Report, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    sizes = Qwen2Sizes() if args.full else SMALL_LM
    lm = LearnableLM(LearnableLMConfig(sizes, SpeakerConfig(width=64, layers=1, heads=2)))
    backbone = of_transformers(lm)
    counts = [(12 + 3 * row, 60 + 17 * row) for row in range(args.batch)]
    text = [torch.randint(1000, (n,), generator=seeded(n)) for n, _ in counts]
    speech = [torch.randint(6561, (n,), generator=seeded(n)) for _, n in counts]
    speaker = torch.randn(len(counts), sizes.width, generator=seeded(1))
    lengths = torch.tensor(counts)
    padded = [nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (text, speech)]

    def ours() -> Tensor:
        return label_loss(*lm(padded[0], lengths[:, 0], padded[1], lengths[:, 1], speaker=speaker))

    def plain() -> Tensor:
        return plain_lm_loss(lm, backbone, text, speech, speaker)

    agree("losses of the language model", ours().detach(), plain().detach(), 1e-5)
    total = sum(n for _, n in counts)
    compare_training(report, f"stage 1, training step of {total} tokens", (lm, ours), (lm, plain))
    lm.eval().requires_grad_(False)
    count = 50 if args.full else 200
    limits = {"limits": (count, count), "generator": None}

    def cached() -> list[int]:
        return lm.generate([text[-1]], **{**limits, "generator": seeded(0)})[0].tolist()

    def again() -> list[int]:
        return recomputed(lm, backbone, text[-1], count, seeded(0))

    same = sum(a == b for a, b in zip(cached(), again(), strict=True))
    best = take_turns(max(1, report.repeats // 2), cached, again)
    note, work = f"{same} of {count} tokens", gflop(cached)
    report.add(f"stage 1, sampling {count}", *best, audio=count / 25, gflop=work, note=note)
    many = [text[-1]] * args.batch
    wide = take_turns(1, lambda: lm.generate(many, **{**limits, "generator": seeded(0)}))[0]
    case, rows = f"stage 1, sampling {count}, batch {args.batch}", args.batch
    report.add(case, wide, rows * best[1], audio=rows * count / 25, gflop=rows * work)


def compare_flow(report: Report, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = latent_flow(**({} if args.full else SMALL_FLOW))
    flow, plain = TokenToMel(config), PlainFlow(config)
    plain.load_state_dict(flow_to_published(flow.state_dict()))
    learner, ratio, bins = FlowLearner(flow), config.token_mel_ratio, config.mel_bins
    lengths = torch.tensor([100 - 7 * row for row in range(args.batch)])
    tokens = torch.randint(6561, (args.batch, 100), generator=seeded(0)) * padding_mask(lengths, 100)
    mask = padding_mask(lengths * ratio, 100 * ratio)[:, None]
    frames = torch.randn(args.batch, bins, 100 * ratio, generator=seeded(1)) * mask
    voices = torch.randn(args.batch, config.speaker_embed_dim, generator=seeded(2))
    batch, t = (
        FlowBatch(tokens, frames, lengths, voices),
        torch.rand(args.batch, generator=seeded(3)),
    )
    noise = torch.randn(args.batch, 100 * ratio, bins, generator=seeded(4)) * mask.transpose(1, 2)
    keep = torch.arange(args.batch) != 1
    draw = Draw(t, t, noise, torch.arange(args.batch) * 3, keep, chunked=False)

    def ours() -> Tensor:
        x, v = objective.straight_path(frames.transpose(1, 2), noise, t)
        found, target = learner(batch, x, v, draw)
        return objective.squared_error(found, target, mask.transpose(1, 2).float())

    agree("losses of the flow", ours().detach(), plain.loss(batch, draw).detach(), 1e-4)
    case = f"stage 2, training step of {int(lengths.sum())} tokens"
    compare_training(report, case, (flow, ours), (plain, lambda: plain.loss(batch, draw)))
    plain.load_state_dict(flow_to_published(flow.state_dict()))
    flow.eval().requires_grad_(False)
    row, start = (
        torch.randint(6561, (args.tokens,), generator=seeded(5)),
        torch.randn(args.tokens * ratio, bins),
    )
    voice = Voice(row[:0], frames.new_zeros(0, bins), voices[0])

    def decode(steps: int) -> Tensor:
        return flow.generate(row, voice, schedule=flow.schedule(steps), noise=[start])[0][0]

    agree("latents", decode(10), plain.generate(row, voices[0], start, 10, 0.7), 1e-4)
    for steps in (1, 2, 10):
        best = take_turns(
            report.repeats,
            lambda steps=steps: decode(steps),
            lambda steps=steps: plain.generate(row, voices[0], start, steps, 0.7),
        )
        work = gflop(lambda steps=steps: decode(steps))
        report.add(f"stage 2, {steps} steps with guidance", *best, audio=args.tokens / 25, gflop=work)
    unguided = flow.schedule(1, guidance=0.0)
    one = take_turns(report.repeats, lambda: flow.generate(row, voice, schedule=unguided, noise=[start]))[0]
    report.add("stage 2, 1 step without, against 10 with", one, best[1], audio=args.tokens / 25)


def agree(what: str, ours: Tensor, plain: Tensor, bound: float) -> None:
    apart = float((ours - plain).abs().max() / plain.abs().max())
    if apart > bound:
        sys.exit(f"{what} differ by {apart:.1e} of the largest: nothing to compare")


def main() -> None:
    parser = options(__doc__, threads=1, repeats=5)
    parser.add_argument("--full", action="store_true", help="released sizes")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument(
        "--tokens", type=int, default=250, help="of the utterance that is decoded, 25 a second"
    )
    args = parser.parse_args()
    if args.dtype != "float32":
        parser.error("--dtype bfloat16: training and both compositions are compared in float32 alone")
    report = Report(args, f"the straightforward composition, {'released' if args.full else 'small'} sizes")
    for _ in report.each_product():
        compare_lm(report, args)
        compare_flow(report, args)


if __name__ == "__main__":
    main()
