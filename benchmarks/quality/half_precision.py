"""bfloat16 beside float32 on this CPU: speed of each system, and how much of its result changes.

Networks have the released sizes and random weights, and `mini` its own, so nothing is fetched; those that are trained
have the sizes of their recipes. Both precisions run in turns in this process, and times are the least of the repeats;
on one thread those of the processor, which other programs lengthen less than those of the clock.

The change of a wave is the mean absolute difference of log-mels (nepers; 1 dB is 0.115) within 60 dB of the loudest.

    python benchmarks/quality/half_precision.py [--threads 1] [--repeats 5] [--models s3gen dacvae ...]
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vokens
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.config import build_config
from vokens.models.dacvae import Latents
from vokens.models.pretrained import Pretrained
from vokens.nn import product
from vokens.train.config import read_recipe

SECONDS = 4
Jobs = dict[str, Callable[[Any], Any]]  # work of a model in one precision, by name


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(rate: int, rows: int = 1) -> Tensor:
    return 0.1 * torch.randn(rows, SECONDS * rate, generator=seeded()).squeeze(0)


def random_weights(model: Pretrained) -> Pretrained:
    """torch's own start of the weights, and codebooks that are not zero."""
    for name, value in model.named_buffers():
        if name.endswith("embed"):
            value.normal_()
    return model.eval().requires_grad_(False)


def codec(model: Any) -> tuple[Pretrained, Jobs]:
    tokens = model.encode(noise(model.sample_rate), model.sample_rate)
    return model, {
        "encode": lambda m: m.encode(noise(m.sample_rate), m.sample_rate),
        "decode": lambda m: m.decode(tokens)[0],
    }


def mini() -> tuple[Pretrained, Jobs]:
    return codec(vokens.load("mini"))


def speechtokenizer() -> tuple[Pretrained, Jobs]:
    from vokens.models.speechtokenizer import SpeechTokenizer

    return codec(random_weights(SpeechTokenizer(SpeechTokenizer.Config())))


def socodec() -> tuple[Pretrained, Jobs]:
    from vokens.models.socodec import SoCodec

    return codec(random_weights(SoCodec(SoCodec.Config())))


def dacvae() -> tuple[Pretrained, Jobs]:
    from vokens.models.dacvae import DACVAE
    from vokens.models.dacvae.config import RELEASES

    return codec(random_weights(DACVAE(RELEASES["dacvae_64d_75hz"])))


def s3gen() -> tuple[Pretrained, Jobs]:
    from vokens.models.s3gen import S3GenModel
    from vokens.models.s3gen.config import DIALECTS

    model: Any = random_weights(S3GenModel(DIALECTS["cosyvoice2"]))
    voice = model.embed_ref(noise(24000), 24000)
    ids = torch.randint(6561, (25 * SECONDS,), generator=seeded(1))
    mel = model(ids, ref_dict=voice, seed=0)
    return model, {
        "flow": lambda m: m(ids, ref_dict=voice, seed=0),
        "vocoder": lambda m: m.mel2wav.inference(mel, seed=0)[0][0],
    }


def of_recipe(kind: type[Pretrained], name: str) -> Any:
    table = dict(read_recipe(name, ["data.train=x"]).model)
    table.pop("positions", None)  # of speech beside its text: the pace comes from the data
    return kind(build_config(kind.Config, table, name))


def learnable_lm() -> tuple[Pretrained, Jobs]:
    from vokens.models.learnable import LearnableLM

    model: Any = of_recipe(LearnableLM, "learnable_lm_mini")
    ids = torch.randint(20, (16, 30), generator=seeded())
    speech = torch.randint(6561, (16, 100), generator=seeded())
    sizes = torch.full((16,), 30), torch.full((16,), 100)

    def step(m: Any) -> Tensor:
        scores, target = m(ids, sizes[0], speech, sizes[1])
        return torch.nn.functional.cross_entropy(
            scores.float().flatten(0, 1), target.flatten(), ignore_index=-1
        )

    return model, {
        "100 ids": lambda m: m.generate([ids[0]], limits=(100, 100), generator=seeded()),
        "training step": trained(step),
    }


def mini_recipe() -> tuple[Pretrained, Jobs]:
    from vokens.models.mini import Mini

    model = of_recipe(Mini, "mini")
    wave = noise(16000, 16)[:, :16000]
    return model, {"training step": trained(lambda m: (m(wave).wave - wave).abs().mean())}


def hift_recipe() -> tuple[Pretrained, Jobs]:
    from vokens.models.s3gen.hift import HiFTNetModel

    model: Any = of_recipe(HiFTNetModel, "hift_mini")
    mel, source = (
        torch.randn(8, 80, 50, generator=seeded()),
        torch.randn(8, 1, 50 * model.config.hop_length, generator=seeded()),
    )
    return model, {"training step": trained(lambda m: m.decode(mel, source).square().mean())}


def trained(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """A forward and a backward pass, as `precision = "bf16"` runs them: products in bfloat16, weights in float32."""

    def step(model: Any) -> Tensor:
        model.train().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=model.half):
            value = loss(model)
        value.backward()
        model.eval()
        return value.detach()

    return step


MODELS = {
    function.__name__: function
    for function in (mini, speechtokenizer, socodec, dacvae, s3gen, learnable_lm, mini_recipe, hift_recipe)
}


def changed(exact: Any, half: Any) -> str:
    if isinstance(exact, list):
        return f"{float((exact[0] != half[0]).float().mean()):.1%} of ids"
    if isinstance(exact, vokens.Tokens):
        return f"{float((exact.codes != half.codes).float().mean()):.1%} of ids"
    one, two = (torch.as_tensor(x.values if isinstance(x, Latents) else x).float() for x in (exact, half))
    if one.dim() == 0:
        return f"loss {float(one):.4f} / {float(two):.4f}"
    if one.dim() == 1:
        mel = LogMel(MEL_24K_80)
        one, two = mel(one[None]), mel(two[None])
        loud = one > one.max() - 6.9
        return f"mel {float((one - two).abs()[loud].mean()):.3f}"
    return f"{float((one - two).norm() / one.norm()):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"{', '.join(product.features())}, {args.threads} threads, torch {torch.__version__}\n")
    print("| system | work | float32 (s) | bfloat16 (s) | faster | change |\n|---|---|---:|---:|---:|---|")
    for name in args.models:
        torch.manual_seed(0)
        model, jobs = MODELS[name]()
        for job, call in jobs.items():
            pair: list[Any] = [model, copy.deepcopy(model)]
            pair[0].half, pair[1].half = False, True
            if job != "training step":
                pair[1].set_dtype(torch.bfloat16)
            best, results = [float("inf")] * 2, [None] * 2
            for _ in range(args.repeats):
                for side, each in enumerate(pair):
                    start = clock()
                    results[side] = call(each)
                    best[side] = min(best[side], clock() - start)
            exact, half = best
            print(
                f"| {name} | {job} | {exact:.2f} | {half:.2f} | {exact / half:.1f} | {changed(*results)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
