"""Names of published HiFT weights: `hift.pt` of CosyVoice, `mel2wav.*` of Chatterbox.

Modules carry the published names; what differs is how the file spells weight norm (three ways), what it puts before
the names, and Snake's alpha, (C,) there and (1, C, 1) here. Strict in both directions.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from torch import Tensor

from vokens.checkpoint import NameTable, State, fold_weight_norm, unfold_weight_norm
from vokens.config import build_config
from vokens.errors import CheckpointError
from vokens.models.s3gen.hift_config import S3GEN_24K, HiFTNetConfig

_PREFIXES = ("mel2wav.", "generator.")  # Chatterbox's whole model, CosyVoice's GAN training
_SAME = (
    "conv_pre",
    "conv_post",
    "ups.{i}",
    "source_downs.{i}",
    "resblocks.{i}.convs1.{j}",
    "resblocks.{i}.convs2.{j}",
    "source_resblocks.{i}.convs1.{j}",
    "source_resblocks.{i}.convs2.{j}",
    "f0_predictor.condnet.{i}",
    "f0_predictor.classifier",
    "m_source.l_linear",
)
_ALPHAS = tuple(
    f"{blocks}.{{i}}.activations{k}.{{j}}.alpha"
    for blocks in ("resblocks", "source_resblocks")
    for k in (1, 2)
)
NAMES = NameTable(
    [(f"{module}.{end}", f"{module}.{end}") for module in _SAME for end in ("weight", "bias")]
    + [(name, name) for name in _ALPHAS],
    dropped={
        "discriminator.*": "of GAN training",
        "epoch": "CosyVoice's training files count in the state dict",
        "step": "likewise",
    },
)
Spelling = Literal["parametrizations", "weight_g", "folded"]
_PLAIN = ("source_downs.", "f0_predictor.classifier", "m_source.")  # published without weight norm


def is_causal(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of CosyVoice 3's vocoder: names are CosyVoice 2's, kernels are not.

    Raises CheckpointError for a vocoder whose parts are of different releases, or that lacks them.
    """
    widths = {
        _bare(key).split(".weight")[0].split(".parametrizations")[0]: value.shape[-1]
        for key, value in state.items()
        if re.search(r"\.(weight|weight_v|weight\.original1)$", key)
    }
    kernels = widths.get("conv_pre"), widths.get("f0_predictor.condnet.0")
    if kernels not in ((7, 3), (5, 4)):
        raise CheckpointError(
            f"kernels of {kernels[0]} in conv_pre and {kernels[1]} in f0_predictor.condnet.0 were found: 7 and 3 "
            "(Chatterbox, CosyVoice 2) or 5 and 4 (CosyVoice 3) are accepted; the file is damaged or of two models"
        )
    return kernels == (5, 4)


def to_ours(state: Mapping[str, Tensor]) -> State:
    """Weights by our names, weight norm folded, of a published state dict with or without a prefix."""
    bare = {_bare(key): value for key, value in state.items()}
    if len(bare) < len(state):
        raise CheckpointError(f"a tensor occurs twice, with and without one of {_PREFIXES}: damaged file")
    ours = NAMES.to_ours(fold_weight_norm(bare))
    return {key: value[None, :, None] if key.endswith(".alpha") else value for key, value in ours.items()}


def to_published(state: Mapping[str, Tensor], spelling: Spelling = "parametrizations") -> State:
    """Published names without a prefix of our folded weights, weight norm spelled as newer files do by default."""
    state = {key: value.flatten() if key.endswith(".alpha") else value for key, value in state.items()}
    published = NAMES.to_published(state)
    if spelling == "folded":
        return published
    modules = [key.removesuffix(".weight") for key in published if key.endswith(".weight")]
    unfolded = unfold_weight_norm(published, [name for name in modules if not name.startswith(_PLAIN)])
    if spelling == "weight_g":
        return unfolded
    return {
        key.replace(".weight_g", f"{_NEWER}0").replace(".weight_v", f"{_NEWER}1"): value
        for key, value in unfolded.items()
    }


_NEWER = ".parametrizations.weight.original"


def _bare(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def config_of(state: Mapping[str, Tensor], source: str) -> HiFTNetConfig:
    """The config of the 24 kHz vocoder with the sizes of published weights and the sines of `source`.

    Raises CheckpointError where source and weights are not both CosyVoice 3's, or neither.
    """
    causal = is_causal(state)
    if causal != (source == "v3"):
        raise CheckpointError(
            f"the vocoder is {'' if causal else 'not '}CosyVoice 3's and sines of {source} were given: a flow "
            "and a vocoder of one release belong together"
        )
    ours = to_ours(state)
    try:
        width, bands = ours["conv_pre.weight"].shape[:2]
        sizes = {
            "base_channels": width,
            "in_channels": bands,
            "f0_predictor_in_channels": bands,
            "f0_predictor_cond_channels": ours["f0_predictor.classifier.weight"].shape[1],
            "nb_harmonics": ours["m_source.l_linear.weight"].shape[1] - 1,
            "source": source,
        }
    except KeyError as error:
        raise CheckpointError(
            f"the vocoder lacks {error}: the file is damaged or of another model"
        ) from error
    return build_config(HiFTNetConfig, asdict(S3GEN_24K) | sizes, "the vocoder's config")
