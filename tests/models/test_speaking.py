"""Text in, speech out: batches as singles, streams as whole, long texts as their sentences; parts and partners."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_speechtokenizer, refused, speechlike
from speakers import published_folder, tiny_lm, tiny_s3gen, tiny_speech, tiny_uslm

import vokens
from vokens.cli import main
from vokens.errors import AudioError, CheckpointError, ConfigError
from vokens.lm.sampling import COSYVOICE, GREEDY
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.learnable import LearnableLM
from vokens.models.learnable.cascade import speech_tokens
from vokens.models.learnable.decoder import decode_stream
from vokens.models.learnable.voice import LearnableSpeech
from vokens.models.learnable.with_s3gen import WithS3Gen
from vokens.models.s3gen import S3GenModel
from vokens.models.speaking import PAUSE, SynthesisOptions, generator_of, load_voice, speaker
from vokens.models.uslm import USLM
from vokens.models.uslm.voice import USLMSpeech
from vokens.text import normalise
from vokens.text.bpe import OPENING

TEXTS = ["Hello there.", "It was 5 o'clock, and late", "No, it was not!"]
LONG = "The fox, which was quick, ran over 3 dogs in the long morning. They slept on. " * 4


@pytest.fixture(scope="module")
def speakers():
    return {
        "learnable": tiny_speech(),
        "with_s3gen": WithS3Gen(tiny_lm(6561), tiny_s3gen()),
        "uslm": USLMSpeech(tiny_uslm(), build_tiny_speechtokenizer()),
    }


@pytest.fixture
def learnable(speakers):
    return speakers["learnable"]


@pytest.fixture(params=["learnable", "with_s3gen", "uslm"])
def model(speakers, request):
    """Every speaker."""
    return speakers[request.param]


@pytest.fixture
def voice(model):
    return model.voice(wave(), "one", sample_rate=16000)


def wave():
    return speechlike(9600, 1)


def seeded(*seeds):
    return [generator_of(seed) for seed in seeds]


def close(actual, expected):
    assert actual.shape == expected.shape
    assert len(actual)
    np.testing.assert_allclose(actual, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


# Every speaker


@pytest.mark.parametrize("said", ["", "one"])
def test_a_text_in_a_batch_is_what_it_is_alone(model, said):
    said = said or ("x" if isinstance(model, USLMSpeech) else "")
    voice = model.voice(wave(), said, sample_rate=16000)
    together = model.say(TEXTS, voice, generator=seeded(1, 2, 3), batch_size=2)
    for row, text in enumerate(TEXTS):
        (alone,) = model.say(text, voice, generator=seeded(row + 1))
        close(together[row], alone)


def test_a_long_text_is_its_sentences(model, voice):
    pieces = model.pieces(LONG)
    assert len(pieces) > 1
    assert " ".join(pieces) == normalise(LONG)
    (whole,) = model.say(LONG, voice, generator=seeded(4), pause=0.5, steps=2)
    seeds = torch.randint(2**31, (len(pieces),), generator=seeded(4)[0]).tolist()
    options = SynthesisOptions(model.sampler, 2)
    parts = [model.synthesize([p], voice, [s], options)[0] for p, s in zip(pieces, seeds, strict=True)]
    silence = np.zeros(model.sample_rate // 2, np.float32)
    close(whole, np.concatenate([x for part in parts for x in (silence, part)][1:]))


def test_seeds_make_takes(model, voice):
    one, same, other = (model.say("Hello there", voice, generator=seeded(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert one.shape != other.shape or not np.allclose(one, other)


def test_streams_come_in_pieces_with_the_same_pauses(model, voice):
    pieces = list(model.say_stream(LONG, voice, sampler=GREEDY, steps=2))
    (whole,) = model.say(LONG, voice, sampler=GREEDY, steps=2)
    assert len(pieces) > 2
    assert len(np.concatenate(pieces)) == len(whole)  # as many tokens; the noise and the mask are a stream's
    assert any(len(piece) == PAUSE * model.sample_rate and not piece.any() for piece in pieces)


def test_what_cannot_be_said(model):
    with pytest.raises(ConfigError, match="nothing to say"):
        model.say(["Hi", " ... "], wave(), voice_text="one", sample_rate=16000)
    refused(ConfigError, "without a recording", model.say, "Hi", voice_text="one")
    refused(ConfigError, "generators", lambda: model.say(TEXTS, generator=seeded(1)))
    refused(ConfigError, "speed", model.say, "Hi", speed=2.0)
    refused(ConfigError, "speed", model.say_stream, "Hi", speed=2.0)


# Learnable-Speech


@pytest.mark.parametrize("words", ["", "one two"])
def test_streamed_tokens_are_those_of_generate(learnable, words):
    voice = learnable.voice(wave(), words, sample_rate=16000)
    assert (voice.latents is None) == (not words)
    for sampler in (GREEDY, COSYVOICE):
        actual = list(speech_tokens(learnable.lm, "hello there", voice, SynthesisOptions(sampler), 3))
        prompt = {"speaker": voice.speaker, "prompt_text": words, "prompt_speech": voice.tokens}
        options = {"sampler": sampler, "generator": seeded(3)}
        (expected,) = learnable.lm.generate(["hello there"], **prompt, **options)
        assert actual == expected.tolist()


def test_a_model_with_paces_speaks_at_other_speeds(learnable):
    config = replace(learnable.lm.config, positions="progress", pace=2.0, speech_per_text=(2.0, 2.0))
    lm = LearnableLM(config).eval().requires_grad_(False)
    lm.load_state_dict(learnable.lm.state_dict())
    model = LearnableSpeech(lm, learnable.flow, learnable.autoencoder)
    whole, half = (
        model.say("hello there", wave(), sample_rate=16000, speed=speed)[0] for speed in (1.0, 2.0)
    )
    assert len(whole) == 2 * len(half)
    options = SynthesisOptions(COSYVOICE, speed=2.0)
    prompt = model.voice(wave(), sample_rate=16000)
    assert len(list(speech_tokens(lm, "hello there", prompt, options, 0))) == 11  # of 11 characters


@pytest.mark.parametrize("words", ["", "one two"])
def test_a_stream_is_the_whole_under_the_same_mask(learnable, words):
    voice = learnable.voice(wave(), words, sample_rate=16000)
    text = "a text that is long enough for chunks of sound, " * 3
    options = SynthesisOptions(COSYVOICE, steps=2)
    pieces = list(learnable.synthesize_stream(text, voice, 7, options))
    tokens = list(speech_tokens(learnable.lm, text, voice, options, 7))
    prompt = {"prompt_tokens": voice.prompt, "prompt_latents": voice.latents}
    latents = learnable.flow.generate(tokens, voice.vector, **prompt, steps=2, chunked=True, seed=7)
    (whole,) = learnable.autoencoder.decode(learnable.flow.pack(latents))
    assert len(pieces) > 2
    close(np.concatenate(pieces), whole)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [[1] * 60, [7, 1, 30, 22], [60], [2, 58]])
def test_decoding_in_pieces_is_decoding_at_once(learnable, sizes):
    vae = learnable.autoencoder
    z = torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    whole = vae.decode_batch(z[None], torch.tensor([60]))[0].numpy()
    pieces = list(decode_stream(vae, z.split(sizes, 1)))
    close(np.concatenate(pieces), whole)
    assert max(map(len, pieces)) <= (max(sizes) + vae.decoder.reach) * vae.hop_length


def test_zero_shot_hears_the_speaker_alone(learnable):
    voice = learnable.voice(wave(), sample_rate=16000)
    assert len(voice.tokens) == 0
    told = learnable.voice(wave(), "one", sample_rate=16000)
    assert torch.equal(told.vector, voice.vector)
    assert len(told.tokens) == 15  # 0.6 s at 25 Hz
    assert told.latents.shape == (6, 30)
    refused(ConfigError, "give a recording", learnable.say, "Hi")
    with pytest.raises(AudioError, match="30 s"):
        learnable.voice(np.zeros(31 * 800, np.float32), "one", sample_rate=800)


def test_a_folder_of_folders(learnable, tmp_path):
    folder = learnable.save_pretrained(tmp_path / "learnable")
    assert {path.name for path in folder.iterdir()} == {
        "autoencoder", "config.json", "flow", "lm", "README.md", "tokenizer",
    }  # fmt: skip
    again = vokens.load(folder)
    assert isinstance(again, LearnableSpeech)
    assert again.fingerprint == learnable.fingerprint
    assert vokens.load(folder / "lm").fingerprint == learnable.lm.fingerprint
    said = [model.say("Hi", wave(), sample_rate=16000, generator=seeded(1)) for model in (learnable, again)]
    assert np.array_equal(said[0][0], said[1][0])
    mute = LearnableSpeech.from_parts(**{name: folder / name for name in ("lm", "flow", "autoencoder")})
    refused(ConfigError, "no tokenizer", lambda: mute.voice(wave(), "one", sample_rate=16000))
    assert vokens.load(mute.save_pretrained(tmp_path / "mute")).tokenizer is None
    (folder / "flow").rename(folder / "elsewhere")
    refused(CheckpointError, "lacks flow", vokens.load, folder)


def test_parts_that_do_not_fit(learnable):
    parts = {"lm": learnable.lm, "flow": learnable.flow, "autoencoder": learnable.autoencoder}
    others = "tokens of the language model and of the flow"
    refused(ConfigError, others, LearnableSpeech.from_parts, **parts | {"lm": tiny_lm(81)})
    wide = DACVAE(DACVAEConfig(encoder_dim=2, decoder_dim=32))
    refused(ConfigError, "latents", LearnableSpeech.from_parts, **parts | {"autoencoder": wide})
    refused(CheckpointError, "not 'learnable_flow'", LearnableSpeech.from_parts, **parts | {"flow": "mini"})


def test_a_flow_of_campplus_vectors(tmp_path):
    model = tiny_speech(campplus=True)
    again = vokens.load(model.save_pretrained(tmp_path / "model"))
    voices = [each.voice(wave(), sample_rate=16000) for each in (model, again)]
    assert voices[0].vector.shape == (1, 192)
    assert torch.equal(voices[0].vector, voices[1].vector)
    assert torch.equal(voices[0].vector, model.speaker.embed([torch.from_numpy(wave())]))
    assert len(again.say("Hello there.", voices[1], steps=1)[0])
    with pytest.raises(ConfigError, match="CAM"):
        LearnableSpeech.from_parts(lm=model.lm, flow=model.flow, autoencoder=model.autoencoder)


# Partners


def test_models_as_speakers(learnable, speakers):
    assert speaker(learnable) is learnable
    lm, s3gen, codec = tiny_lm(6561), speakers["with_s3gen"].decoder, build_tiny_speechtokenizer()
    assert isinstance(speaker(lm, s3gen), WithS3Gen)
    assert isinstance(speaker(tiny_uslm(), codec), USLMSpeech)
    for model, decoder, words in (
        (codec, None, "speaks no text"),
        (lm, None, "an S3Gen decodes"),
        (tiny_uslm(), s3gen, "needs a codec"),
        (learnable, codec, "has its own decoder"),
    ):
        refused(ConfigError, words, speaker, model, decoder)


def test_a_language_model_without_speaker_token(speakers):
    """CosyVoice 2's: the prompt alone says who speaks."""
    model = speaker(tiny_lm(6561, hears=False), speakers["with_s3gen"].decoder)
    voice = model.voice(wave(), "one", sample_rate=16000)
    (whole,) = model.say("Hello there.", voice, sampler=GREEDY, steps=1)
    streamed = model.say_stream("Hello there.", voice, sampler=GREEDY, steps=1)
    assert len(np.concatenate(list(streamed))) == len(whole) > 0


def test_uslm_goes_on_from_a_prompt(speakers):
    model = speakers["uslm"]
    refused(ConfigError, "--voice-text", lambda: model.say("Hi", wave(), sample_rate=16000))


def test_uslm_knows_its_codec_by_name():
    model = speaker(USLM(replace(tiny_uslm().config, codec="mini", codebook_size=1024)))
    assert model.codec.name == "mini"
    with pytest.raises(ConfigError, match="cannot be opened"):
        speaker(USLM(replace(tiny_uslm().config, codec="nowhere")))


def test_uslm_says_phonemes_as_they_are():
    uslm = USLM(replace(tiny_uslm().config, front_end="phonemes")).eval()
    model = USLMSpeech(uslm, build_tiny_speechtokenizer())
    assert model.pieces("h|ə|l|oʊ,_w|ɜː|l|d!") == ["h|ə|l|oʊ,_w|ɜː|l|d!"]
    assert len(model.say("h|ə|l|oʊ", wave(), voice_text="w|ɜː|l|d", sample_rate=16000)[0])


# As CosyVoice publishes it


@pytest.mark.parametrize("release", ["cosyvoice2", "cosyvoice3"])
def test_a_folder_as_cosyvoice_publishes_it_speaks(release, tmp_path, monkeypatch, capsys):
    folder = published_folder(tmp_path / "CosyVoice", release)
    monkeypatch.chdir(tmp_path)
    soundfile.write("ref.wav", wave(), 16000)
    said = ["say", "Hi.", "--model", str(folder), "--voice", "ref.wav", "--steps", "1", "--voice-text"]
    assert main([*said, "One.", "-o", "out.wav"]) == 0, capsys.readouterr().err
    speaking = load_voice(folder)
    assert isinstance(speaking, WithS3Gen)
    assert (speaking.lm.config.release, speaking.decoder.name) == (release, release)
    assert speaking.lm.config.tokens == speaking.decoder.config.tokens
    (expected,) = speaking.say("Hi.", "ref.wav", voice_text="One.", steps=1, generator=seeded(0))
    np.testing.assert_allclose(soundfile.read("out.wav")[0], expected.clip(-1, 1), atol=1e-4)
    ids, own = speaking.lm._read("Hi.", "One.")
    marked = speaking.lm.ids(OPENING) if release == "cosyvoice3" else []
    assert ids.tolist() == marked + speaking.lm.ids("One.") + speaking.lm.ids("Hi.")
    assert own == len(speaking.lm.ids("Hi."))
    assert isinstance(speaking.decoder, S3GenModel)  # as the folder opens where no text is to be said
    words = vokens.load(folder / "llm.pt")
    assert isinstance(words, LearnableLM)
    assert words.config == speaking.lm.config
    other = tiny_s3gen() if release == "cosyvoice3" else None
    refused(ConfigError, r"other sounds|makes S3 tokens", speaker, words, other)


def test_of_silence_cosyvoice_3_speaks_five_tokens_at_most(tmp_path):
    """Of two silent tokens with opposite weights one always has the largest logit."""
    speaking = load_voice(published_folder(tmp_path / "CosyVoice", "cosyvoice3"))
    voice = speaking.voice(wave(), sample_rate=16000)
    speaking.lm.head.weight.zero_()
    speaking.lm.head.weight[1], speaking.lm.head.weight[2] = 1.0, -1.0
    options = {"sampler": GREEDY, "steps": 1}
    assert len(speaking.lm.generate(["Hi."], sampler=GREEDY)[0]) > 5
    assert len(speaking.say("Hi.", voice, **options)[0]) == 5 * 960
    assert sum(map(len, speaking.say_stream("Hi.", voice, **options))) == 5 * 960


def test_what_cosyvoices_folder_lacks_is_named(tmp_path):
    folder = published_folder(tmp_path / "CosyVoice", "cosyvoice3")
    for name, said in (
        ("hift.pt", r"flow\.pt and llm\.pt and campplus\.onnx and no hift\.pt.*download what is missing"),
        ("flow.pt", r"no flow\.pt"),
        ("llm.pt", r"its llm\.pt in it"),
        ("campplus.onnx", r"put campplus\.onnx into"),
        ("speech_tokenizer_v3.onnx", r"put speech_tokenizer_v3\.onnx into"),
        ("CosyVoice-BlankEN/config.json", r"put CosyVoice-BlankEN/config\.json beside"),
    ):
        hidden = (folder / name).rename(tmp_path / "hidden")
        with pytest.raises((CheckpointError, ConfigError), match=said):
            load_voice(folder).voice(wave(), sample_rate=16000)
        hidden.rename(folder / name)
