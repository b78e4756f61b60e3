"""One recorded step of SpeechTokenizer's adversarial training, everything in training mode.

Discriminators judge (x, x_hat), take an Adam step, and the generator's losses use the stepped ones.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import weights
from safetensors.torch import load_file
from test_discriminators import BUILD, PUBLISHED_NAMES, TINY, fill
from torch import Tensor, nn

from vokens.checkpoint import load_strict
from vokens.models.speechtokenizer import checkpoint as layout
from vokens.models.speechtokenizer.config import SpeechTokenizerConfig
from vokens.models.speechtokenizer.model import SpeechTokenizer
from vokens.train.losses import (
    ADVERSARIAL,
    MelLoss,
    d_axis,
    feature_matching,
    wave_l1,
    weighted_sum,
)

FOLDER = Path(__file__).parents[1] / "golden" / "speechtokenizer"
GOLDEN = FOLDER / "train_step.safetensors"
WEIGHTS = {"feature": 1, "adversarial": 1, "mel": 1, "commit": 10, "wave": 500, "distill": 120}
NAMES = {"feature": "feat", "adversarial": "adv", "mel": "mel", "wave": "recon", "distill": "distill"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def tiny_discriminators(golden: dict[str, Tensor]) -> dict[str, nn.Module]:
    return {name: fill(build(TINY[name]), name, golden).train() for name, build in BUILD.items()}


def discriminator_step(
    networks: dict[str, nn.Module], target: Tensor, output: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """One Adam step; gives the loss and the gradient norm of each discriminator."""
    parameters = [list(network.parameters()) for network in networks.values()]
    optimizer = torch.optim.Adam([{"params": group} for group in parameters], lr=1e-4, betas=(0.9, 0.99))
    losses = []
    for network in networks.values():
        real, _ = network(target)
        fake, _ = network(output.detach())
        losses.append(ADVERSARIAL["least_squares"].discriminator(real, fake))
    torch.stack(losses).sum().backward()
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in parameters]
    optimizer.step()
    return torch.stack(losses).detach(), norms


def generator_losses(
    networks: dict[str, nn.Module], target: Tensor, output: Tensor, feature: Tensor, semantic: Tensor
) -> dict[str, Tensor]:
    real_features, fake_logits, fake_features = [], [], []
    for network in networks.values():
        with torch.no_grad():
            real_features += network(target)[1]
        logits, features = network(output)
        fake_logits += logits
        fake_features += features
    return {
        "feature": feature_matching(real_features, fake_features),
        "adversarial": ADVERSARIAL["least_squares"].generator(fake_logits),
        "mel": MelLoss()(output, target),
        "wave": wave_l1(output, target),
        "distill": d_axis(feature, semantic),
    }


def tiny_codec(golden: dict[str, Tensor]) -> SpeechTokenizer:
    """The tiny generator with weight norm and the codebook arithmetic of the published trainer."""
    case = json.loads((FOLDER / "config.json").read_text())["cases"]["train_step"]["config"]
    config = replace(SpeechTokenizerConfig.from_published(case), published_training=True)
    codec = SpeechTokenizer(config).add_weight_norm()
    state = {name: value.clone() for name, value in layout.to_published(codec.state_dict()).items()}
    weights.fill_(state)
    for i in range(config.num_codebooks):
        book = f"quantizer.vq.layers.{i}._codebook"
        state[f"{book}.inited"].fill_(1.0)
        state[f"{book}.embed"].mul_(0.5)
        state[f"{book}.cluster_size"].copy_(golden[f"init.cluster_size.{i}"])
        state[f"{book}.embed_avg"].copy_(state[f"{book}.embed"] * golden[f"init.cluster_size.{i}"][:, None])
    load_strict(codec, layout.to_ours(state), "golden")
    return codec.train()


def test_whole_step(golden: dict[str, Tensor]) -> None:
    """Outputs, losses, codebooks after their update, and the gradients of discriminators and generator."""
    codec, networks = tiny_codec(golden), tiny_discriminators(golden)
    target = golden["x"]
    quantized = codec.quantizer(codec.latent(target[:, 0]))
    output = codec.synthesis(quantized.latent)[:, None]
    feature = codec.semantic(quantized.first)
    for value, name in ((output, "x_hat"), (feature, "feature"), (quantized.commit.mean(), "loss_q")):
        assert (value - golden[name]).abs().max() <= 1e-5 * golden[name].abs().max()

    losses, norms = discriminator_step(networks, target, output)
    torch.testing.assert_close(losses, golden["d.losses"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.sum(), golden["d.total"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack(norms), golden["d.grad_norm"], rtol=1e-4, atol=0)
    terms = generator_losses(networks, target, output, feature, golden["semantic"])
    for ours, published in NAMES.items():  # 1e-4: Adam's first step is sign-like and amplifies rounding
        torch.testing.assert_close(terms[ours], golden[f"g.{published}"], rtol=1e-4, atol=0)
    # Four power iterations: real and fake, in the discriminators' pass and in the generator's.
    state = PUBLISHED_NAMES["msd"].to_published(networks["msd"].state_dict())
    for name, wanted in golden.items():
        if name.startswith("msd.after_u/"):
            torch.testing.assert_close(state[name.removeprefix("msd.after_u/")], wanted, rtol=1e-4, atol=1e-6)
    total = weighted_sum({**terms, "commit": quantized.commit.mean()}, WEIGHTS)
    torch.testing.assert_close(total, golden["g.total"], rtol=1e-4, atol=0)

    total.backward()
    gradients = {name: p.grad for name, p in codec.named_parameters() if p.grad is not None}
    gradients = layout.to_published(gradients)
    norms = torch.stack([gradients[name].norm() for name in sorted(gradients)])
    torch.testing.assert_close(norms, golden["g.grad_norm_sorted_by_name"], rtol=1e-4, atol=1e-5)
    state = layout.to_published(codec.state_dict())
    for name, wanted in golden.items():
        kind, _, rest = name.partition("/")
        if kind == "g.grad":
            assert (gradients[rest] - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        elif name.startswith("after."):
            _, leaf, i = name.split(".")
            torch.testing.assert_close(
                state[f"quantizer.vq.layers.{i}._codebook.{leaf}"], wanted, rtol=1e-5, atol=1e-5
            )
