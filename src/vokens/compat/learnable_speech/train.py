"""`train --model llm|flow`: both stages by the published flags and config.yaml, also under torchrun and on a CPU.

The settings become a recipe, `MODEL_DIR/recipe.toml`, for `vokens train`; the weights are also saved in MODEL_DIR as
the published `epoch_E_step_S.pt`. The same command resumes a stopped run.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vokens.atomic import atomic_write
from vokens.checkpoint import save_torch
from vokens.compat.learnable_speech import settings
from vokens.errors import ConfigError
from vokens.text.files import read_json
from vokens.train.config import read_recipe, trainer_of
from vokens.train.published_files import TOKEN_RATE

SECONDS = 10.0  # of a crop for the flow; the published code uses whole recordings
# Flags that are accepted and have no effect -> reason.
NO_EFFECT = {
    "train_engine": "accelerate trains on all devices that torchrun starts",
    "tensorboard_dir": "curves are in MODEL_DIR/tensorboard",
    "ddp.dist_backend": "nccl on GPUs, gloo on CPUs",
    "timeout": "processes wait for each other without a limit",
    "comet_project": "curves on Comet are in the project vokens",
    "comet_experiment_name": "Comet names the run",
    "local_rank": "torchrun says it",
    **dict.fromkeys(("prefetch", "pin_memory"), "batches are read from a memory-mapped cache"),
    **dict.fromkeys(("deepspeed", "deepspeed_config", "deepspeed.save_states"), "there is no deepspeed"),
    **dict.fromkeys(("deepscale", "deepscale_config"), "there is no deepspeed"),
}


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 trained, 130 stopped and saved."""
    arguments = _parser().parse_args(argv)
    values = settings.read_yaml(arguments.config)
    folder = Path(arguments.model_dir)
    try:
        recipe = recipe_of(arguments, values)
    except ConfigError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"a value in {arguments.config} is of another kind ({error}): give those of the published config.yaml"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder / "recipe.toml", recipe, arguments)
    config = read_recipe(folder / "recipe.toml", arguments.set)
    trainer = trainer_of(config.task)(config)
    first = trainer.accelerator.is_main_process
    per_epoch = batches_of_epoch(trainer)
    if not any(change.split("=")[0].strip() == "steps" for change in arguments.set):
        epochs = int((values.get("train_conf") or {}).get("max_epoch", 2000))
        recipe["steps"] = max(1, epochs * per_epoch // config.accumulate)
        trainer.config = replace(trainer.config, steps=recipe["steps"])
        if first:
            write_recipe(folder / "recipe.toml", recipe, arguments)
    if first:
        for note in notes(arguments, values, trainer):
            print(f"train: {note}", file=sys.stderr)
    trainer.run()
    if first:
        path = save_published(trainer, folder, trainer.step * config.accumulate // per_epoch)
        done = f"step {trainer.step} of {trainer.config.steps}"
        print(f"{done}; trained: {path} and {folder / trainer.exported}")
    return 0 if trainer.step >= trainer.config.steps else 130


def recipe_of(arguments: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of published flags, as nested tables. Raises ConfigError for contradictory flags."""
    amp = "bf16" if arguments.use_amp and torch.cuda.is_available() else "no"
    comet = "comet_ml" if not arguments.comet_disabled and os.environ.get("COMET_API_KEY") else ""
    train = Path(arguments.train_data)
    data = {
        "train": str(train),
        "valid": arguments.cv_data,
        "cache": str(train.parent / "cache"),
        "workers": max(1, arguments.num_workers),
    }
    shared = {
        **settings.common(values),
        "out": arguments.model_dir,
        "precision": amp,
        "tracker": comet,
        "init": arguments.checkpoint or arguments.pretrained_model or "",
    }
    own = _language_model(arguments, values) if arguments.model == "llm" else _flow(arguments, values)
    return {**shared, **own, "data": data | own["data"]}


def _language_model(arguments: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    recipe = settings.language_model(values)
    recipe["model"]["speaker"] = {"published": True, "embed_dim": int(values.get("spk_embed_dim", 192))}
    init = {}
    if arguments.qwen_pretrain_path:
        folder = Path(arguments.qwen_pretrain_path).expanduser()
        recipe["model"] |= {"front_end": f"bpe:{folder}", "backbone": qwen_sizes(folder)}
        if not (arguments.checkpoint or arguments.pretrained_model):
            init = {"init": str(folder)}
    elif not any(change.startswith("model.front_end") for change in arguments.set):
        raise ConfigError(
            "--qwen_pretrain_path is needed: Qwen2's folder (CosyVoice-BlankEN), for its tokenizer and its weights; "
            "or --set model.front_end=characters for a model without"
        )
    if bool(arguments.dpo) != bool(arguments.ref_model):
        raise ConfigError("--dpo and --ref_model belong together: give both or neither")
    if arguments.dpo:
        if Path(arguments.train_data).suffix != ".jsonl":
            raise ConfigError(
                f"--train_data {arguments.train_data}: with --dpo, pairs are expected, a *.jsonl whose lines "
                "have text, chosen and rejected (vokens.train.pairs)"
            )
        recipe["preference"] = {"beta": 0.01, "reference": arguments.ref_model}
    data: dict[str, Any] = {"batch_frames": max(1, settings.max_frames(values) // settings.ratio(values))}
    if arguments.dpo:  # the codec of a data.list has no name, that of pairs has one: do not compare them
        data["valid"] = ""
    return {"task": "learnable_lm", **recipe, **init, "data": data}


def _flow(arguments: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    speaker = (values.get("flow") or {}).get("speaker_encoder_path") or ""
    given = any(change.startswith("data.speaker") for change in arguments.set)
    if not given and not Path(str(speaker)).expanduser().exists():
        raise ConfigError(
            f"flow.speaker_encoder_path in {arguments.config} is {speaker!r}, which does not exist: give the trained "
            "language model, its epoch_E_step_S.pt or folder, or CAM++'s weights; or --set data.speaker=PATH"
        )
    frames = settings.ratio(values) * TOKEN_RATE * SECONDS
    size = max(1, int(settings.max_frames(values) // frames))
    data: dict[str, Any] = {"normalise": False, "seconds": SECONDS, "batch_size": size}
    if not given:
        data["speaker"] = str(speaker)
    return {"task": "learnable_flow", **settings.flow(values), "data": data}


def qwen_sizes(folder: Path) -> dict[str, Any]:
    """Settings of `Qwen2Sizes` from a transformers folder. Raises ConfigError where it has no config.json."""
    try:
        config = read_json(folder / "config.json")
        names = {
            "vocab_size": "vocab_size",
            "width": "hidden_size",
            "hidden": "intermediate_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "max_positions": "max_position_embeddings",
            "norm_eps": "rms_norm_eps",
        }
        rope = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        return {ours: config[theirs] for ours, theirs in names.items()} | {"rope_theta": float(rope)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--qwen_pretrain_path {folder} holds no Qwen2 config.json ({error!r})") from error


def batches_of_epoch(trainer: Any) -> int:
    """Micro-batches per process for one epoch."""
    world, train = trainer.accelerator.num_processes, trainer.train
    if trainer.config.task == "learnable_lm":
        return train.batches_per_epoch(world)
    return max(1, int(train.sizes.sum()) // (train.crop * train.batch_size * world))


def notes(arguments: argparse.Namespace, values: dict[str, Any], trainer: Any) -> list[str]:
    given = [name for name in NO_EFFECT if getattr(arguments, name) not in (None, False)]
    reasons = ", ".join(f"--{name} ({NO_EFFECT[name]})" for name in given)
    lines = [f"without effect here: {reasons}"] if given else []
    if arguments.use_amp and trainer.config.precision == "no":
        lines.append("--use_amp: float32 on a CPU")
    if arguments.checkpoint and arguments.pretrained_model:
        lines.append("--checkpoint is used, --pretrained_model is not")
    if arguments.model == "flow":
        size = (values.get("flow") or {}).get("output_size")
        said = {"output_size": size, "token_latent_ratio": settings.ratio(values)}
        network = trainer.model.flow.config
        true = {"output_size": network.mel_bins, "token_latent_ratio": network.token_mel_ratio}
        wrong = {name: value for name, value in said.items() if value not in (None, true[name])}
        if wrong:
            used = {name: true[name] for name in wrong}
            lines.append(f"the config has {wrong}, the files {used}: the files are used")
    return lines


def write_recipe(path: Path, recipe: dict[str, Any], arguments: argparse.Namespace) -> None:
    lines = [f"# train --model {arguments.model} --config {arguments.config}", *_toml(recipe)]
    with atomic_write(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(table: dict[str, Any], name: str = "") -> list[str]:
    plain = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    lines = [f"\n[{name}]", *plain] if name else plain
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{name}.{key}" if name else key)
    return lines


def save_published(trainer: Any, folder: Path, epoch: int) -> Path:
    """`epoch_E_step_S.pt`: the weights under the published names, epoch and step, as published, and a config
    record, which torch.load ignores."""
    path = folder / f"epoch_{epoch}_step_{trainer.step}.pt"
    model = trainer.final_model()
    state = {name: value.detach().cpu().clone() for name, value in model.to_published().items()}
    save_torch(path, {**state, "epoch": epoch, "step": trainer.step}, model.description())
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, choices=("llm", "flow"), help="the first stage or the second")
    add("--config", required=True, help="the published config.yaml")
    add("--train_data", required=True, help="data.list or train_index.json; with --dpo, pairs")
    add("--cv_data", required=True, help="the same of held-out data")
    add("--model_dir", required=True, help="folder of the run")
    add("--qwen_pretrain_path", help="Qwen2's folder, CosyVoice-BlankEN")
    add("--checkpoint", help="weights to start from")
    add("--pretrained_model", help="weights to start from, such as CosyVoice 2's llm.pt or flow.pt")
    add("--ref_model", help="with --dpo: the frozen reference model")
    add("--dpo", action="store_true", help="learn from preferences")
    add("--num_workers", type=int, default=2, help="threads that make the caches (2)")
    add("--use_amp", action="store_true", help="bfloat16 on GPUs")
    comet = "no curves on Comet, where COMET_API_KEY enables them"
    add("--comet_disabled", action="store_true", help=comet)
    changes = "change a setting of the recipe, as in vokens train"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=changes)
    for name, why in NO_EFFECT.items():
        flag = name in ("pin_memory", "deepspeed", "deepscale")
        add(f"--{name}", action="store_true" if flag else "store", help=f"without effect: {why}")
    return parser
