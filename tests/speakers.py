"""Small random models that speak, which tests of the command line, the server and the page share."""

from dataclasses import replace
from typing import Any

import torch
from s3gen_weights import reduced, sizes

from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import LearnableLM, LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.learnable.flow import LearnableFlow
from vokens.models.learnable.flow_config import LearnableFlowConfig, latent_flow
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.config import S3GenModelConfig
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
