"""Our SoCodec beside the straightforward composition of its parts: time, shares, and whether the codes are the same.

The composition is transformers' HubertModel with eager attention over the audio with its silence and mask, as fairseq
does it, and the vocoder with weight norm and with filters as depthwise convolutions, as published. Both are of the
released sizes, share random weights and run in this process, one after the other, with the same number of threads.

    python benchmarks/socodec.py [--threads 2] [--product torch onednn] [--seconds 10 60 300] [--repeats 2]

Eager attention writes 16 scores for every pair of frames: 60 s take 0.6 GB, 5 minutes 14 GB a layer; beyond --whole
seconds there is only ours, in windows as by default. Up to there both see the whole, and windows have their own row.
"""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from measure import Report, best, gflop, options
from torch import Tensor, nn

from vokens.models.socodec import SoCodec, SoCodecConfig
from vokens.models.socodec.hubert import normalised
from vokens.models.socodec.vocoder import SnakeBeta, Vocoder, low_pass
from vokens.nn.conv import add_weight_norm


class PlainSnake(nn.Module):
    """The activation by library calls: transposed and strided depthwise convolutions around sin²."""

    def __init__(self, like: SnakeBeta) -> None:
        super().__init__()
        self.alpha, self.beta = like.alpha, like.beta
        self.register_buffer("taps", torch.tensor(low_pass()).view(1, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        taps = self.taps.expand(channels, -1, -1)
        up = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), taps, stride=2, groups=channels)
        up = up[..., 15:-15]
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        up = up + (up * alpha).sin().square() / (beta + 1e-9)
        return F.conv1d(F.pad(up, (5, 6), mode="replicate"), taps, stride=2, groups=channels)


def plain_vocoder(vocoder: Vocoder) -> Vocoder:
    plain = copy.deepcopy(vocoder)
    for module in list(plain.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, SnakeBeta):
                setattr(module, name, PlainSnake(part))
            elif isinstance(part, nn.ModuleList):
                for i, item in enumerate(part):
                    if isinstance(item, SnakeBeta):
                        part[i] = PlainSnake(item)
    add_weight_norm(plain)
    return plain


class Plain:
    """The composition: wave (N,), N a multiple of 1920, to codes, and codes to wave."""

    def __init__(self, codec: SoCodec) -> None:
        self.codec, self.vocoder = codec, plain_vocoder(codec.vocoder)

    def hubert(self, wave: Tensor) -> Tensor:
        model, frames = self.codec.hubert.model, len(wave) // 320
        sound = normalised(wave)[None]
        mask = torch.zeros(sound.shape, dtype=torch.int64)
        mask[:, : 320 * frames + 80] = 1
        model.set_attn_implementation("eager")
        features = model(sound, attention_mask=mask).last_hidden_state[:, :frames]
        model.set_attn_implementation("sdpa")
        return features

    def encoder(self, features: Tensor) -> Tensor:
        return self.codec.codebooks.encode(self.codec.encoder(features.transpose(1, 2)).transpose(1, 2))

    def speaker(self, wave: Tensor) -> Tensor:
        return self.codec.speaker(self.codec.mel(wave[None]))

    def decoders(self, codes: Tensor, voice: Tensor) -> Tensor:
        codec = self.codec
        hidden = codec.semantic_decoder.hidden(
            codec.codebooks.decode(codes).transpose(1, 2) + voice[..., None]
        )
        codec.semantic_decoder.last(hidden)  # the release predicts HuBERT's features in every synthesis
        return codec.mel_decoder(hidden + voice[..., None])


class Ours:
    """The same steps as `SoCodec` takes them."""

    def __init__(self, codec: SoCodec) -> None:
        self.codec = codec

    def hubert(self, wave: Tensor) -> Tensor:
        return self.codec.hubert([normalised(wave)[: len(wave) + 80]], [len(wave) // 320])

    encoder = Plain.encoder

    def speaker(self, wave: Tensor) -> Tensor:
        return self.codec.voice(wave)

    def decoders(self, codes: Tensor, voice: Tensor) -> Tensor:
        return self.codec.decode_mel(codes, voice)

    def vocoder(self, mel: Tensor) -> Tensor:
        return self.codec.vocode(mel[0])[None]


def run(system: Plain | Ours, wave: Tensor, repeats: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Seconds of each part, codes and wave."""
    seconds: dict[str, float] = {}
    features, seconds["HuBERT"] = best(lambda: system.hubert(wave), repeats)
    codes, seconds["encoder, quantizer"] = best(lambda: system.encoder(features), repeats)
    voice, seconds["mel, speaker"] = best(lambda: system.speaker(wave), repeats)
    mel, seconds["decoders"] = best(lambda: system.decoders(codes, voice), repeats)
    sound, seconds["vocoder"] = best(lambda: system.vocoder(mel), repeats)
    return seconds, codes, sound


def build() -> SoCodec:
    """Released sizes, random weights at which signals live and codes vary; any recording is seen as a whole."""
    torch.manual_seed(0)
    codec = SoCodec(SoCodecConfig(window_seconds=1e5)).eval().requires_grad_(False)
    for name, weight in codec.named_parameters():
        if weight.dim() == 3 and name.startswith(("encoder.", "semantic_decoder.", "mel_decoder.")):
            weight.mul_(1.7)
    generator = torch.Generator().manual_seed(1)
    inner = codec.codebooks.project_in(codec.latent(noise(10)[None])[0]).chunk(8, -1)
    for book, part in zip(codec.codebooks.codebooks, inner, strict=True):
        book.embed.copy_(part.mean(0) + part.std(0) * torch.randn(book.embed.shape, generator=generator))
    return codec


def noise(seconds: float) -> Tensor:
    samples = -(-int(seconds * 16000) // 1920) * 1920
    generator = torch.Generator().manual_seed(2)
    loudness = 0.05 + 0.05 * torch.sin(torch.arange(samples) / 1500)
    return torch.randn(samples, generator=generator) * loudness


def whole(report: Report, codec: SoCodec, wave: Tensor, length: float) -> Tensor:
    """Rows of the whole and of each part, a product; the composition's codes."""
    theirs, wanted, sound = run(Plain(codec), wave, report.repeats)
    theirs["all"] = sum(theirs.values())
    work = gflop(lambda: run(Ours(codec), wave, 1))
    for _ in report.each_product():
        ours, found, again = run(Ours(codec), wave, report.repeats)
        ours["all"] = sum(ours.values())
        same, error = (
            float((found == wanted).float().mean()),
            float((again - sound).abs().max() / sound.abs().max()),
        )
        agreement = f"{same:.2%} of codes, waves within {error:.0e}"
        for part in reversed(ours):
            note = agreement if part == "all" else f"{ours[part] / ours['all']:.0%} of the time"
            counted = work if part == "all" else None
            report.add(
                f"{length:g} s, {part}", ours[part], theirs[part], audio=length, gflop=counted, note=note
            )
    return wanted


@torch.inference_mode()
def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 300.0])
    parser.add_argument("--whole", type=float, default=60.0, help="longest recording that is seen at once")
    given = parser.parse_args()
    report = Report(given, "the composition of transformers' HuBERT and the published vocoder")
    codec, settings = build().set_dtype(report.dtype), SoCodecConfig()
    for length in [2.0] if given.quick else given.seconds:
        wave = noise(length)
        wanted = whole(report, codec, wave, length) if length <= given.whole else None
        if length > settings.window_seconds:
            codec.config = dataclasses.replace(codec.config, window_seconds=settings.window_seconds)
            for _ in report.each_product():
                codes, seconds = best(lambda wave=wave: codec.tokenize([wave])[0], 1)
                note = "" if wanted is None else f"{float((codes == wanted[0]).float().mean()):.2%} of codes"
                case = f"{length:g} s, tokens in windows of {settings.window_seconds:g} s"
                report.add(case, seconds, audio=length, note=note)
            codec.config = dataclasses.replace(codec.config, window_seconds=1e5)


if __name__ == "__main__":
    main()
