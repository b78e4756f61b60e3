"""Learnable-Speech's config.yaml as settings of our runs. It is HyperPyYAML, whose tags build objects and call
functions; here they are read as plain values, and nothing is executed.
"""

import re
from pathlib import Path
from typing import Any

from vokens.errors import ConfigError, needs_extra
from vokens.text.files import read_text

_REFERENCE = re.compile(r"<([^<>]+)>")
_SEED = 1986  # the published one


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file. Objects of !new, !name and !apply become their arguments; `!ref <a[b]>` becomes the
    value that it names, else its text.

    Raises ConfigError for files that are not YAML mappings.
    """
    with needs_extra("pyyaml", "train", "a config.yaml"):
        import yaml

    class Plain(yaml.SafeLoader):
        """Loader that ignores unknown tags."""

    def plain(loader: Plain, tag: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return _Reference(node.value) if tag == "ref" else loader.construct_scalar(node)

    Plain.add_multi_constructor("!", plain)
    try:
        values = yaml.load(read_text(path), Plain)
    except yaml.YAMLError as error:
        raise ConfigError(f"the config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the config {path} holds no settings: a YAML mapping is expected")
    return _resolved(values, values)


class _Reference(str):
    """The text of a !ref."""


def _resolved(value: Any, values: dict[str, Any], depth: int = 8) -> Any:
    """A value with its references replaced, also those to references; one that is more than a name becomes its text."""
    if isinstance(value, dict):
        return {name: _resolved(inner, values, depth) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, values, depth) for inner in value]
    if not isinstance(value, _Reference):
        return value
    match = _REFERENCE.fullmatch(value.strip())
    if match is None or not depth:
        return str(value)
    named: Any = values
    for name in match[1].replace("]", "").split("["):
        named = named.get(name) if isinstance(named, dict) else None
    return _resolved(named, values, depth - 1)


def common(values: dict[str, Any]) -> dict[str, Any]:
    """Seed, optimiser and intervals, as settings of `RunConfig`."""
    train = values.get("train_conf") or {}
    optim, scheduler = train.get("optim_conf") or {}, train.get("scheduler_conf") or {}
    seeds = (value for name, value in values.items() if name.startswith("__set_seed"))
    seed = next((value[0] for value in seeds if isinstance(value, list) and value), _SEED)
    save = int(train.get("save_per_step") or 0)
    save = save if save > 0 else 2000
    return {
        "seed": int(seed),
        "accumulate": int(train.get("accum_grad", 1)),
        "log_every": int(train.get("log_interval", 5)),
        "save_every": save,
        "validate_every": save,
        "optim": {
            "learning_rate": float(optim.get("lr", 5e-5)),
            "betas": tuple(float(beta) for beta in optim.get("betas", (0.9, 0.999))),
            "weight_decay": float(optim.get("weight_decay", 0.01)),
            "warmup": int(scheduler.get("warmup_steps", 500)),
            "schedule": "constant",
            "clip": float(train.get("grad_clip", 1.0)),
        },
    }


def max_frames(values: dict[str, Any]) -> int:
    """Latent frames of a batch."""
    return int((values.get("batch") or {}).get("max_frames_in_batch", 5000))


def ratio(values: dict[str, Any]) -> int:
    """Latents per token of the config."""
    return int(values.get("token_latent_ratio", 3))


def language_model(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of `LearnableLMRunConfig`, except data and backbone."""
    lm = values.get("llm") or {}
    return {
        "smoothing": float(lm.get("lsm_weight", 0.0)),
        "length_normalised": bool(lm.get("length_normalized_loss", True)),
        "model": {"mix": tuple(lm.get("mix_ratio", (5, 15)))},
    }


def flow(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of `LearnableFlowRun`, except data and what the files determine."""
    whole = values.get("flow") or {}
    encoder, decoder = whole.get("encoder") or {}, whole.get("decoder") or {}
    estimator = decoder.get("estimator") or {}
    cfm = decoder.get("cfm_params") or {}
    cfm = cfm.get("content", cfm)
    sizes = {
        "token_embed_dim": whole.get("input_size"),
        "pre_lookahead_len": whole.get("pre_lookahead_len"),
        "encoder_attention_heads": encoder.get("attention_heads"),
        "encoder_linear_units": encoder.get("linear_units"),
        "encoder_num_blocks": encoder.get("num_blocks"),
        "encoder_num_up_blocks": encoder.get("num_up_blocks"),
        "decoder_channels": (estimator.get("channels") or [None])[0],
        "decoder_n_blocks": estimator.get("n_blocks"),
        "decoder_num_mid_blocks": estimator.get("num_mid_blocks"),
        "decoder_num_heads": estimator.get("num_heads"),
        "decoder_attention_head_dim": estimator.get("attention_head_dim"),
        "chunk_size": values.get("chunk_size"),
        "cfm_inference_cfg_rate": cfm.get("inference_cfg_rate"),
        "cfm_t_scheduler": cfm.get("t_scheduler"),
    }
    contrastive = float(cfm.get("contrastive_lambda", 0.05)) if cfm.get("use_contrastive_fm", True) else 0.0
    return {
        "noise_pairing": "knn" if cfm.get("use_immiscible", True) else "none",
        "candidates": int(cfm.get("immiscible_k", 8)),
        "contrastive": contrastive,
        "time": "cosine" if cfm.get("t_scheduler", "cosine") == "cosine" else "uniform",
        "unconditioned": float(cfm.get("training_cfg_rate", 0.2)),
        "chunked": 0.0,  # the published training never streams
        "model": {name: value for name, value in sizes.items() if value is not None},
    }
