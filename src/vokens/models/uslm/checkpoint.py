"""USLM's published weights: one state dict of 372 tensors, six of which are tied to another.

The output layer of stage s is the embedding of codebook s + 1: the file has both names, ours has one.
"""

from collections.abc import Mapping
from typing import Any

import torch

from vokens.checkpoint import NameTable, State, count_of
from vokens.config import build_config
from vokens.errors import CheckpointError
from vokens.models.uslm.config import USLMConfig

_ROWS = [
    (f"{part}_{side}_position.alpha", f"{part}.{ours}_positions.scale")
    for part in ("ar", "nar")
    for side, ours in (("text", "text"), ("audio", "speech"))
]
_ROWS += [
    ("ar_text_embedding.word_embeddings.weight", "ar.text.weight"),
    ("nar_text_embedding.word_embeddings.weight", "nar.text.weight"),
    ("ar_audio_embedding.word_embeddings.weight", "ar.speech.weight"),
    ("nar_audio_embeddings.{i}.word_embeddings.weight", "nar.speech.{i}.weight"),
    ("nar_stage_embeddings.{i}.word_embeddings.weight", "nar.stages.{i}"),
    ("ar_predict_layer.weight", "ar.predict.weight"),
]
for _part, _norms in (
    ("ar", {"*": "norm.*"}),
    ("nar", {"norm.*": "norm.*", "project_layer.*": "project.*"}),
):
    _layer, _ours = f"{_part}_decoder.layers.{{i}}", f"{_part}.transformer.layers.{{i}}"
    _ROWS += [
        (f"{_layer}.self_attn.in_proj_weight", f"{_ours}.attention.project.weight"),
        (f"{_layer}.self_attn.in_proj_bias", f"{_ours}.attention.project.bias"),
        (f"{_layer}.self_attn.out_proj.*", f"{_ours}.attention.out.*"),
        (f"{_layer}.linear1.*", f"{_ours}.up.*"),
        (f"{_layer}.linear2.*", f"{_ours}.down.*"),
    ]
    for _there, _here in _norms.items():
        _ROWS += [(f"{_layer}.norm{n}.{_there}", f"{_ours}.norm{n}.{_here}") for n in (1, 2)]
        _ROWS += [(f"{_part}_decoder.norm.{_there}", f"{_part}.transformer.norm.{_here}")]


def configure(state: State, config: USLMConfig | Mapping[str, Any] | None) -> USLMConfig:
    """Sizes from the shapes; the number of heads and further settings come from `config`.

    Raises CheckpointError for missing tensors and for heads that are neither given nor the release's,
    ConfigError for settings that do not exist.
    """
    if isinstance(config, USLMConfig):
        return config
    settings = dict(config or {})
    try:
        classes, width = state["ar_predict_layer.weight"].shape
        shapes = {
            "width": width,
            "codebook_size": classes - 1,
            "layers": count_of(state, "ar_decoder.layers.{}.norm1.weight"),
            "feedforward": state["ar_decoder.layers.0.linear1.weight"].shape[0],
            "text_symbols": state["ar_text_embedding.word_embeddings.weight"].shape[0],
            "num_codebooks": count_of(state, "nar_audio_embeddings.{}.word_embeddings.weight"),
        }
    except KeyError as error:
        raise CheckpointError(f"the weights of USLM lack {error}: the file is damaged") from error
    of_release = all(getattr(USLMConfig, name) == value for name, value in shapes.items())
    if "heads" not in settings and not of_release:
        raise CheckpointError(
            f"networks {width} wide with {shapes['layers']} layers are not the released ones, and weights do not say "
            "their heads: give config={'heads': n}, or open the folder that training wrote"
        )
    released = {"front_end": "espeak", "published_stop": True, "published_targets": True}
    return build_config(USLMConfig, {**shapes, **released, **settings}, "the config given for USLM")


def to_ours(state: State, config: USLMConfig) -> State:
    """Published names to ours. Raises CheckpointError where tied weights differ."""
    state = dict(state)
    for ours, copy in _tied(config).items():
        first, second = state.get(ours), state.pop(copy, None)
        if first is None or second is None or not torch.equal(first, second):
            raise CheckpointError(f"{copy} must be there and equal {ours}: these are another model's weights")
    return _table(config).to_ours(state)


def to_published(state: State, config: USLMConfig) -> State:
    """Our names to the published ones, with the copies."""
    published = _table(config).to_published(state)
    return published | {copy: published[ours] for ours, copy in _tied(config).items()}


def _table(config: USLMConfig) -> NameTable:
    last = config.num_codebooks - 2
    return NameTable([*_ROWS, (f"nar_predict_layers.{last}.weight", "nar.predict.weight")])


def _tied(config: USLMConfig) -> dict[str, str]:
    return {
        f"nar_audio_embeddings.{j + 2}.word_embeddings.weight": f"nar_predict_layers.{j}.weight"
        for j in range(config.num_codebooks - 2)
    }
