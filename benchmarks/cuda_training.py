"""What `cuda.py` trains: for each task a recipe at the released size, without teachers, on speech of that script."""

from pathlib import Path
from typing import Any

from vokens.train.config import read_recipe

TINY_FLOW = {
    "token_embed_dim": 32,
    "encoder_attention_heads": 2,
    "encoder_linear_units": 32,
    "encoder_num_blocks": 1,
    "encoder_num_up_blocks": 1,
    "decoder_channels": 48,
    "decoder_n_blocks": 1,
    "decoder_num_mid_blocks": 1,
    "decoder_num_heads": 2,
    "decoder_attention_head_dim": 16,
}
TINY_VAE = {"encoder_dim": 2, "encoder_rates": (8, 60), "decoder_dim": 16, "decoder_rates": (60, 8)}
WAVES = "losses={wave=500.0, mel=1.0, commit=10.0, adversarial=1.0, feature=1.0}"
SOCODEC = "losses={commit=1.0, semantic=1000.0, mel=10.0, mel_adversarial=1.0, mel_feature=1.0}"
# Task -> recipe, the changes that make it the released size without a teacher, those for tiny networks.
TRAINING: dict[str, tuple[str, list[str], list[str]]] = {
    "codec": (
        "speechtokenizer",
        ["teacher={}", WAVES],
        [
            "system=mini",
            "adversarial={kinds=['mstft'], filters=2, windows=[256, 128]}",
            "model={width=16, latent_dim=8, codebook_size=16, encoder_layers=1, decoder_layers=1}",
        ],
    ),
    "recogniser": (
        "s3_scratch",
        [
            "teacher={}",
            "losses={ctc=1.0}",
            "model={}",
            "data.seconds=60.0",
            "fit_codebooks=0",
            "data.test=''",
        ],
        ["model={n_mels=80, width=32, heads=2, layers=1}", "data.seconds=3.0", "data.longest=2.0"],
    ),
    "flow": ("s3gen_mini", ["model={}", "data.batch_size=32"], []),
    "learnable_flow": ("learnable_flow", [], []),
    "vocoder": (
        "hift_mini",
        ["model={}", "discriminators={}", "data.batch_size=16"],
        [
            "discriminators={divisor=32, channels=2}",
            "model={base_channels=16, nb_harmonics=2, f0_predictor_cond_channels=24, "
            "source_resblock_kernel_sizes=[3, 3, 3], source_resblock_dilation_sizes=[[1], [1], [1]], "
            "resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]]}",
        ],
    ),
    "socodec": (
        "socodec",
        ["hubert={folder}/hubert", SOCODEC, "mel_discriminator={}", "data.seconds=5.04"],
        [
            "hubert=''",
            "losses={commit=1.0, mel=10.0, mel_adversarial=1.0, mel_feature=1.0}",
            "mel_discriminator={channels=2}",
            "model={features='mel', hubert_width=16, width=32, groups=4, codebook_size=8, codebook_dim=4, "
            "speaker_channels=[8, 8, 8, 8, 16], speaker_attention=8, speaker_squeeze=4, vocoder_width=32}",
            "data.seconds=0.72",
        ],
    ),
    "token_lm": ("socodec_lm_mini", ["model={}"], ["model={width=32, layers=1, heads=2}"]),
    "uslm": (
        "uslm_mini",
        ["model={front_end='characters'}", "data.codec=mini", "data.batch_frames=4000"],
        ["model={front_end='characters', width=48, heads=4, layers=2, feedforward=96}"],
    ),
    "learnable_lm": (
        "learnable_lm",
        ["init=''", "model={front_end='characters'}", "data.codec={folder}/tokenizer"],
        [
            "model={front_end='characters', backbone={width=48, hidden=96, layers=2, heads=4, kv_heads=2}, "
            "speaker={width=16, layers=1, heads=2, embed_dim=8}}"
        ],
    ),
    "dacvae": (
        "dacvae",
        [],
        [
            "model={latent_dim=6, encoder_dim=2, encoder_rates=[8, 60], decoder_dim=16, decoder_rates=[60, 8]}",
            "discriminators={divisor=32, channels=2, windows=[512]}",
            "mel_windows=[256, 1024]",
        ],
    ),
    "flow_autoencoder": (
        "flowae_mini",
        ["autoencoder={folder}/latents", "data.batch_size=16"],
        ["model={flow_width=32, flow_layers=1}", "data.batch_size=2"],
    ),
}


def run_of(task: str, folder: Path, dry: bool, precision: str) -> Any:
    """The config of a run on the corpus and models of `folder`; precision: "no" or "bf16"."""
    recipe, changes, tiny = TRAINING[task]
    data = "manifest.jsonl" if task != "token_lm" else "tokens"
    places = [f"out={folder}/{task}", "threads=0", f"data.cache={folder}/cache", f"precision={precision}"]
    places += [f"data.{part}={folder}/{data}" for part in ("train", "valid")]
    if task in ("flow", "learnable_flow"):
        places += [f"data.tokenizer={folder}/tokenizer", f"data.speaker={folder}/campplus.safetensors"]
    if task == "learnable_flow":
        places += [f"data.latents={folder}/latents"]
    if dry:
        flow = ", ".join(f"{name}={value}" for name, value in TINY_FLOW.items())
        changes = [*changes, *(tiny or ["model={" + flow + "}"])]
        changes += [] if "lm" in task or task == "recogniser" else ["data.batch_size=2"]
        changes += ["data.seconds=0.4"] if "flow" in task or task in ("codec", "dacvae", "vocoder") else []
    return read_recipe(recipe, [change.replace("{folder}", str(folder)) for change in [*places, *changes]])


def batch_of(config: Any) -> str:
    """The recipe's batch in words."""
    data = config.data
    if hasattr(data, "batch_frames"):
        return f"{data.batch_frames} frames"
    rows = f"{data.batch_size} x " if hasattr(data, "batch_size") else ""
    return f"{rows}{data.seconds:g} s"
