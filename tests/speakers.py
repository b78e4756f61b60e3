"""Small random models that speak, which tests of the command line, the server and the page share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from s3gen_weights import reduced, sizes

from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
from vokens.models.s3gen.config import S3GenModelConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.models.uslm import USLM, USLMConfig
from vokens.nn.campplus import CAMPPlus
from vokens.text import front_end


def tiny_lm(tokens: int, hears: bool = True) -> LearnableLM:
    voice = SpeakerConfig(width=32, layers=1, heads=2, embed_dim=12) if hears else None
    backbone = Qwen2Sizes(front_end("characters").num_ids, 32, 64, 1, 2, 2, 512)
    config = LearnableLMConfig(backbone, voice, tokens, speech_per_text=(0.1, 0.2), front_end="characters")
    torch.manual_seed(0)
    lm = LearnableLM(config).eval().requires_grad_(False)
    lm.head.weight.normal_(0, 1.0)
    lm.speech_embedding.weight.normal_(0, 1.0)
    return lm


def qwen2(sizes: Qwen2Sizes, **settings: Any) -> Any:
    """The network of transformers with these sizes."""
    import transformers

    kinds = {"vocab_size": "vocab_size", "hidden_size": "width", "intermediate_size": "hidden"}
    kinds |= {
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
    }
    given = {name: getattr(sizes, ours) for name, ours in kinds.items()}
    return transformers.Qwen2Model(transformers.Qwen2Config(**given, **settings))


def tiny_speech(campplus: bool = False) -> LearnableSpeech:
    """All parts, small and random: 27 tokens, latents of 6 numbers, two for each token."""
    small, voice = sizes(32, 2, 48, 1, 1, 32, 1, 1, 2, 16, 3), 192 if campplus else 12
    flow = latent_flow(vocab_size=27, mel_bins=6, speaker_embed_dim=voice, **small)
    lm = tiny_lm(27)
    encoder = None if campplus else lm.config.speaker
    vae = DACVAE(DACVAEConfig(latent_dim=6, encoder_dim=2, decoder_dim=32))
    tokenizer = S3Tokenizer(S3TokenizerConfig(width=32, heads=2, layers=1, n_mels=80, codebook_size=27))
    return LearnableSpeech.from_parts(
        lm=lm,
        flow=LearnableFlow(LearnableFlowConfig(flow, encoder, (0.1,) * 6, (2.0,) * 6)),
        autoencoder=vae,
        tokenizer=tokenizer,
        speaker=CAMPPlus().eval().requires_grad_(False) if campplus else None,
    )


def tiny_s3gen() -> S3GenModel:
    flow = replace(reduced("chatterbox-turbo"), encoder_num_blocks=1, decoder_num_mid_blocks=1)
    config = S3GenModelConfig.of_flow(flow)
    vocoder = replace(config.mel2wav, base_channels=32, f0_predictor_cond_channels=32)
    tokenizer = S3TokenizerConfig(width=64, heads=1, layers=1)
    torch.manual_seed(0)
    return S3GenModel(replace(config, mel2wav=vocoder, tokenizer=tokenizer)).named("s3gen")


def tiny_uslm() -> USLM:
    torch.manual_seed(0)
    config = USLMConfig(width=32, heads=2, layers=1, feedforward=64, codebook_size=32, frames_per_symbol=1)
    return USLM(config).eval().requires_grad_(False)


def published_folder(folder: Path, release: str) -> Path:
    """CosyVoice's files under their names, reduced; of the networks, what shapes leave open is the release's."""
    from test_hift import REDUCED as VOCODER
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir()
    (folder / f"{release}.yaml").touch()
    (folder / "configuration.json").write_text('{"framework": "Pytorch", "task": "text-to-speech"}')
    words = folder / "CosyVoice-BlankEN"
    words.mkdir()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["Hello there.", "It was 5 o'clock, and late", "No, it was not!"]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    trained.model.save(str(words))
    (words / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_attention_heads": 4}))
    third, sizes = release == "cosyvoice3", Qwen2Sizes(280 + 281, 32, 64, 1, 4, 2, 512)
    torch.manual_seed(0)
    lm = LearnableLM(LearnableLMConfig(sizes, None, release=release))
    lm.head.weight.data.normal_(0, 1.0)
    flow = replace(reduced("cosyvoice3"), decoder_num_mid_blocks=1)
    if not third:
        few = {f"encoder_num_{kind}": 1 for kind in ("blocks", "up_blocks")}
        few |= {f"decoder_{kind}": 1 for kind in ("n_blocks", "num_mid_blocks")}
        heads = {"decoder_channels": 256, "decoder_num_heads": 8, "decoder_attention_head_dim": 64}
        flow = replace(reduced("cosyvoice2"), **few, **heads)
    sounds = HiFTNetModel(replace(VOCODER, source=flow.source)).state_dict()
    tokens = S3Tokenizer(S3TokenizerConfig(width=64, heads=1, layers=1)).to_published()
    for name, state in {
        "llm.pt": lm.to_published(),
        "flow.pt": flow_to_published(TokenToMel(flow).state_dict(), flow.decoder_attention_head_dim),
        "hift.pt": hift_to_published(sounds),
        "campplus.onnx": CAMPPlus().state_dict(),
        f"speech_tokenizer_v{release[-1]}.onnx": tokens,
    }.items():
        torch.save(state, folder / name)
    return folder
