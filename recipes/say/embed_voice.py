"""Put a trained voice into the package, its weights at 8 bits: s3_mini first, then all of what `vokens say` needs.

python recipes/say/embed_voice.py tokenizer runs/s3_mini/codec
python recipes/say/embed_voice.py voice --lm runs/say_lm/lm --flow runs/say_flow/flow \\
    --autoencoder runs/say_autoencoder/model --speaker campplus_cn_en_common.pt \\
    --reference ref.wav --reference-text "What it says."
python recipes/say/embed_voice.py pack FOLDER OUT [--fp16]

Rounded weights have other fingerprints: the flow is told those of the tokenizer and the autoencoder as they are
embedded. To train on exactly what ships, `pack` them before and train the flow and the language model on the results.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from vokens import registry
from vokens.checkpoint import save_safetensors
from vokens.models.learnable.voice import DEFAULT_VOICE, LearnableSpeech
from vokens.models.pretrained import Pretrained, load
from vokens.nn.campplus_onnx import open_campplus
from vokens.packed import pack

RECIPES = Path(__file__).parents[1]
LARGEST = 60_000_000  # bytes of s3_mini and say together
TOKENIZER = "s3_mini"


def card(name: str) -> str:
    """The model card beside the recipes, SYSTEM/NAME_card.md, where it is written; else the model's own."""
    return "".join(path.read_text() for path in RECIPES.glob(f"*/{name}_card.md"))


def packed(model: Pretrained, out: Path, dtype: torch.dtype) -> Pretrained:
    """Write a model's weights in this type; the model as it opens from there."""
    model.save_pretrained(out, dtype=dtype, card=card(model.name))
    return load(out)


def embed_tokenizer(args: argparse.Namespace, weights: Path) -> None:
    codec = load(args.folder)
    codec.name = TOKENIZER
    packed(codec, weights / TOKENIZER, torch.int8)


def embed_voice(args: argparse.Namespace, weights: Path) -> None:
    """Part after part, in an order in which each knows those that it was trained on."""
    folder, tokenizer = weights / registry.VOICE, load(weights / TOKENIZER)
    shutil.rmtree(folder, ignore_errors=True)
    kinds = {
        name: torch.float16 if name in args.fp16 else torch.int8 for name in ("lm", "flow", "autoencoder")
    }
    autoencoder = packed(load(args.autoencoder), folder / "autoencoder", kinds["autoencoder"])
    flow = load(args.flow)
    flow.config = replace(
        flow.config,
        flow=replace(flow.config.flow, cfm_steps=args.steps),
        latents=autoencoder.name,
        latents_fingerprint=autoencoder.fingerprint,
        tokens=TOKENIZER,
        tokens_fingerprint=tokenizer.fingerprint,
    )
    packed(flow, folder / "flow", kinds["flow"])
    packed(load(args.lm), folder / "lm", kinds["lm"])
    parts = {name: folder / name for name in kinds}
    if args.speaker:
        (folder / "speaker").mkdir()
        save_safetensors(folder / "speaker/model.safetensors", pack(open_campplus(args.speaker).state_dict()))
        parts["speaker"] = folder / "speaker"
    model = LearnableSpeech.from_parts(**parts, tokenizer=tokenizer, flow_prompt=args.prompt)
    model.name = registry.VOICE
    model.keep_voice(DEFAULT_VOICE, model.voice(args.reference, args.reference_text))
    model.save_frame(folder, tokenizer=TOKENIZER, card=card(registry.VOICE))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=registry.WEIGHTS, help="where the package keeps them")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("tokenizer").add_argument("folder")
    voice = verbs.add_parser("voice")
    for part in ("lm", "flow", "autoencoder"):
        voice.add_argument(f"--{part}", required=True, help="trained folder")
    voice.add_argument("--speaker", help="CAM++'s weights, where the flow was trained with its vectors")
    voice.add_argument("--reference", required=True, help="recording of the default voice, 4 to 8 s")
    voice.add_argument(
        "--reference-text", default="", help="what it says, for a voice that speech goes on from"
    )
    voice.add_argument("--prompt", type=float, default=0.0, help="seconds of other recordings for the flow")
    voice.add_argument("--steps", type=int, default=2, help="of the flow, where the user says none")
    voice.add_argument("--fp16", nargs="+", default=[], help="parts that 8 bits hurt")
    alone = verbs.add_parser("pack")
    alone.add_argument("folder")
    alone.add_argument("out", type=Path)
    alone.add_argument("--fp16", action="store_true")
    args = parser.parse_args()
    if args.verb == "pack":
        model = packed(load(args.folder), args.out, torch.float16 if args.fp16 else torch.int8)
        print(f"{args.out}: {size(args.out) / 1e6:.1f} MB, fingerprint {model.fingerprint}")
        return
    {"tokenizer": embed_tokenizer, "voice": embed_voice}[args.verb](args, args.weights)
    whole = sum(size(args.weights / name) for name in (TOKENIZER, registry.VOICE))
    print(f"{args.weights}: s3_mini and say have {whole / 1e6:.1f} MB")
    if whole > LARGEST:
        raise SystemExit(f"the package holds {LARGEST / 1e6:.0f} MB of them: train smaller networks")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
