"""The laws that every codec keeps. A new system joins by one line in conftest.CODECS."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHUNKS, build_tiny_socodec, refused, speechlike
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vokens
from vokens.batching import batches
from vokens.errors import AudioError, CheckpointError, ConfigError, MissingExtra, TokensError
from vokens.lm.sampling import COSYVOICE
from vokens.models.codec import Codec
from vokens.models.speaking import Speaker

RATE = 16000


def decoded(codec: Codec, tokens: vokens.Tokens) -> np.ndarray:
    return codec.decode(tokens)[0]


def cut_flac() -> bytes:
    whole = io.BytesIO()
    soundfile.write(whole, speechlike(16000), RATE, format="FLAC")
    return whole.getvalue()[:3000]


def test_batch_equals_single(codec: Codec) -> None:
    lengths = [1, 7, 319, 320, 321, 4000, 9601, 16000, 16001, 24123]
    waves = [speechlike(n, seed=i) for i, n in enumerate(lengths)]
    order = np.random.default_rng(0).permutation(len(waves))
    together, small = (codec.encode([waves[i] for i in order], RATE, batch_seconds=s) for s in (120.0, 1.2))
    assert torch.equal(together.codes, small.codes)
    for place, i in enumerate(order):
        assert torch.equal(together[place].codes, codec.encode(waves[i], RATE).codes), f"{lengths[i]} samples"
    if codec.decodes:
        sounds = zip(codec.decode(together), codec.decode(together, batch_seconds=1.2), strict=True)
        for place, pair in enumerate(sounds):
            alone = decoded(codec, together[place])
            assert all(np.abs(sound - alone).max() <= 1e-5 for sound in pair)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 5000))
def test_length_law(codec: Codec, samples: int) -> None:
    """One frame for every hop that is begun; a mel-based system may round its last mel frame away."""
    tokens = codec.encode(speechlike(samples), RATE)
    frames = int(tokens.lengths)
    assert frames == codec.num_frames(samples)
    assert 0 <= -(-samples // codec.hop_length) - frames <= (0 if codec.decodes else 1)
    assert tokens.codes.shape == (1, codec.num_codebooks, frames)
    if codec.decodes:
        wave = decoded(codec, tokens)
        assert wave.shape == (samples,)
        assert wave.dtype == np.float32


def test_every_form_of_a_recording_gives_the_same_codes(codec: Codec, tmp_path: Path) -> None:
    wave, path = speechlike(3000), tmp_path / "a folder" / "hello there.wav"
    path.parent.mkdir()
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    content, expected = path.read_bytes(), codec.encode(wave, RATE).codes
    with path.open("rb") as file:
        assert torch.equal(codec.encode(file).codes, expected)
    for array in (torch.from_numpy(wave), np.stack([wave, wave])):  # stereo
        assert torch.equal(codec.encode(array, RATE).codes, expected)
    one = (
        path,
        str(path),
        content,
        io.BytesIO(content),
        bytearray(content),
        (wave, RATE),
        (torch.from_numpy(wave)[None], RATE),
        {"array": wave, "sampling_rate": RATE, "path": "gone.wav"},
        {"array": wave.tolist(), "sampling_rate": RATE},
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
    )
    for source in one:
        assert torch.equal(codec.encode(source).codes, expected), type(source)
    assert len(codec.encode(item for item in (path, (wave, RATE)))) == 2
    assert len(codec.encode((wave, wave), RATE)) == 2


def test_rows_of_datasets_are_recordings(codec: Codec) -> None:
    datasets = pytest.importorskip("datasets")
    content = io.BytesIO()
    soundfile.write(content, speechlike(3000), RATE, format="WAV", subtype="FLOAT")
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": content.getvalue(), "path": None}] * 2})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    expected = codec.encode(speechlike(3000), RATE).codes
    assert torch.equal(codec.encode(rows[0]["audio"]).codes, expected)
    assert torch.equal(codec.encode(rows["audio"])[1].codes, expected)  # a column
    refused(AudioError, r'dict of audio.*row\["audio"\]', codec.encode, rows[0])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "None was given.*a path, bytes"),
        (16000, "an int was given.*a path, bytes"),
        ([], "empty list"),
        ([0.1, 0.2], "item 0 of the list is a float.*array"),
        ([["a.wav"]], "item 0 of the list is a list"),
        ({}, "dict of nothing.*row"),
        ((np.zeros(9, np.float32), 8000), "8000 Hz.*16000"),
        (io.StringIO("text"), "binary mode"),
        (torch.tensor(0.5), "shape"),
    ],
)
def test_what_is_no_recording_is_refused_by_type(codec: Codec, source: object, words: str) -> None:
    refused(AudioError, words, codec.encode, source, 16000)


@pytest.mark.parametrize("texts", [None, b"Hello.", {"text": "Hello."}, ["Hello.", 3], []])
def test_texts_and_voices_of_other_types_are_refused(texts: object) -> None:
    class Silent(Speaker):
        sample_rate, front_end, sampler, voice_type = RATE, "characters", COSYVOICE, tuple

        def voice(self, source: object, text: str = "", *, sample_rate: int | None = None) -> tuple:
            return (vokens.audio.load(source, source_rate=sample_rate)[0],)

        def synthesize(self, pieces: list, voice: object, seeds: list, options: object) -> list[np.ndarray]:
            return [np.zeros(8, np.float32) for _ in pieces]

    assert len(Silent().say(["Hello.", "You."], (speechlike(900), RATE))) == 2
    refused(ConfigError, r"a text|empty list", lambda: Silent().say(texts))
    refused(ConfigError, "an int was given as the voice", lambda: Silent().say("Hello.", 3))


def test_fewer_codebooks_are_a_prefix(codec: Codec) -> None:
    wave = speechlike(8000)
    tokens = codec.encode(wave, RATE)
    for k in range(1, codec.num_codebooks + 1):
        assert torch.equal(codec.encode(wave, RATE, num_codebooks=k).codes, tokens.select(0, k).codes)


def test_ids_of_a_language_model_become_tokens(codec: Codec) -> None:
    tokens = codec.encode([speechlike(9000), speechlike(2000)], RATE)
    first, ids = tokens[0], tokens[0].codes
    forms = [ids, ids[0], ids.tolist(), ids[0].tolist(), ids.numpy().astype(np.uint16), [ids[0]]]
    for form in [*forms, *([ids[0, 0], ids[0, 0].tolist()] if codec.num_codebooks == 1 else [])]:
        made = codec.tokens(form, global_vector=first.global_vector)
        assert torch.equal(made.codes, ids)
        facts = made.model, made.fingerprint, made.num_codebooks
        assert facts == (codec.name, codec.fingerprint, ids.shape[1])
    rows = codec.tokens([item.codes[0] for item in tokens], global_vector=tokens.global_vector)
    assert torch.equal(rows.codes, tokens.codes)
    assert rows.lengths.tolist() == tokens.lengths.tolist()
    again = codec.tokens(tokens.codes, tokens.lengths, global_vector=tokens.global_vector)
    assert torch.equal(again.lengths, tokens.lengths)
    if codec.decodes:
        waves = zip(codec.decode(rows), codec.decode(tokens), strict=True)
        assert all(np.abs(made[: len(wave)] - wave).max() <= 1e-5 for made, wave in waves)


@pytest.mark.parametrize(
    "ids", [None, 3, [], "ids", {"codes": 1}, [[1, 2], [3]], torch.rand(1, 1, 4), [[[9**9]]]]
)
def test_other_ids_are_refused(speaker: Codec, ids: object) -> None:
    refused(TokensError, r"\(B, K, T\)|\(K, T\)", speaker.tokens, ids)


def test_decode_says_how_ids_become_tokens(speaker: Codec) -> None:
    for ids in (torch.zeros(1, 1, 4, dtype=torch.int64), [[1, 2]], None):
        refused(TokensError, r"codec\.tokens\(ids\)", speaker.decode, ids)


def test_tokens_of_no_frames_are_empty_waves(speaker: Codec) -> None:
    tokens = speaker.encode(speechlike(3000), RATE)
    none = speaker.tokens(tokens.codes[:, :, :0], global_vector=tokens.global_vector)
    assert [wave.shape for wave in speaker.decode(none)] == [(0,)]
    assert [len(wave) for wave in speaker.decode(vokens.Tokens.cat([none, tokens, none]))] == [0, 3000, 0]
    nobody = vokens.Tokens.cat([tokens])[:0]
    assert speaker.decode(nobody) == []


def test_selected_codebooks_decode_alone(speaker: Codec) -> None:
    tokens = speaker.encode(speechlike(8000), RATE)
    first = decoded(speaker, tokens.select(0, 1))
    rest = decoded(speaker, tokens.select(1, speaker.num_codebooks))
    assert first.shape == rest.shape == (8000,)
    assert not np.allclose(first, rest)


def test_twice_is_the_same_and_nothing_learns(codec: Codec) -> None:
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    wave = speechlike(16000, seed=3)
    tokens = codec.encode(wave, RATE)
    assert torch.equal(tokens.codes, codec.encode(wave, RATE).codes)
    if codec.decodes:
        assert np.array_equal(decoded(codec, tokens), decoded(codec, tokens))
    assert all(torch.equal(before[name], value) for name, value in codec.state_dict().items())
    tokens.codes[0, 0, 0] = 0  # an ordinary tensor, not one of inference mode


def test_saved_folder_opens_alike(codec: Codec, tmp_path: Path) -> None:
    again = vokens.load(codec.save_pretrained(tmp_path / "saved"))
    assert type(again) is type(codec)
    assert (again.config, again.name, again.fingerprint) == (codec.config, codec.name, codec.fingerprint)
    wave = speechlike(5000)
    tokens = codec.encode(wave, RATE)
    assert torch.equal(again.encode(wave, RATE).codes, tokens.codes)
    if codec.decodes:
        assert np.array_equal(decoded(again, tokens), decoded(codec, tokens))
    assert type(codec).from_pretrained(tmp_path / "saved").fingerprint == codec.fingerprint


def test_socodec_decodes_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    codec = build_tiny_socodec()
    tokens, folder = codec.encode(speechlike(4000), RATE), codec.save_pretrained(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "transformers", None)
    bare = vokens.load(folder)
    assert np.array_equal(bare.decode(tokens)[0], codec.decode(tokens)[0])
    for job, argument in (
        (bare.encode, (speechlike(4000), RATE)),
        (bare.save_pretrained, tmp_path / "again"),
    ):
        refused(MissingExtra, r"HuBERT.*transformers.*\[hf\]", job, argument)
    assert not (tmp_path / "again").exists()


def test_every_key_is_accounted_for(codec: Codec, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = codec.save_pretrained(tmp_path / "saved")
    state = load_file(folder / "model.safetensors")
    removed = sorted(state)[0]
    kept = {name: value for name, value in state.items() if name != removed}
    for changed, named in ((kept, removed), (state | {"stray": torch.ones(1)}, "stray")):
        save_file(changed, folder / "model.safetensors")
        refused(CheckpointError, named.replace(".", r"\."), vokens.load, folder)


def test_half_precision_keeps_the_fingerprint(speaker: Codec, tmp_path: Path) -> None:
    half = vokens.load(speaker.save_pretrained(tmp_path / "saved"), dtype="bfloat16")
    assert half.fingerprint == speaker.fingerprint
    tokens = half.encode(speechlike(8000), RATE)
    assert decoded(speaker, tokens).shape == decoded(half, tokens).shape


def test_an_hour_in_pieces_is_the_whole(speaker: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same audio with the chunk length of long audio set small, so that many seams are crossed."""
    wave = speechlike(40_000)
    whole = speaker.encode(wave, RATE)
    sound = decoded(speaker, whole)
    module, names = CHUNKS[speaker.system]
    for name in names:
        monkeypatch.setattr(f"{module}.{name}", 17)
    pieces = speaker.encode(wave, RATE)
    assert torch.equal(pieces.codes, whole.codes)
    assert np.abs(decoded(speaker, pieces) - sound).max() <= 1e-5


@pytest.mark.parametrize("rate", [8000, 24000, 44100, 192000])
def test_other_rates(codec: Codec, rate: int) -> None:
    tokens = codec.encode(speechlike(rate // 2, sample_rate=rate), rate)
    assert abs(int(tokens.num_samples) - codec.sample_rate // 2) <= 1


@pytest.mark.parametrize(
    "wave",
    [np.zeros(8000, np.float32), np.ones(8000, np.float32), 4 * speechlike(8000)],
    ids=["silent", "dc", "clipped"],
)
def test_odd_sounds_work(codec: Codec, wave: np.ndarray) -> None:
    tokens = codec.encode(wave, RATE)
    assert not codec.decodes or np.isfinite(decoded(codec, tokens)).all()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros(0, np.float32), "no audio|empty"),
        (np.full(500, np.nan, np.float32), "NaN|finite"),
        (np.full(500, np.inf, np.float32), "[Ii]nf|finite"),
        (np.zeros((2, 3, 4), np.float32), "shape|dimension|mono"),
        (b"not audio at all, just words " * 9, "audio|format"),
        ("no/such/file.wav", "no/such/file.wav"),
        (".", "folder|directory"),
        (cut_flac(), "."),
    ],
)
def test_bad_audio_is_refused(codec: Codec, source: object, words: str) -> None:
    refused(AudioError, words, lambda: codec.encode(source, RATE if isinstance(source, np.ndarray) else None))


def test_arrays_need_a_rate(codec: Codec) -> None:
    refused(AudioError, "sample_rate=", lambda: codec.encode(speechlike(1000)))


def test_codebook_numbers_are_checked(codec: Codec) -> None:
    for target in (0, -1, codec.num_codebooks + 1):
        with pytest.raises(ConfigError, match=str(codec.num_codebooks)):
            codec.encode(speechlike(1000), RATE, num_codebooks=target)


def test_a_tokenizer_that_only_encodes_says_who_speaks(built: dict[str, Codec]) -> None:
    for codec in built.values():
        if not codec.decodes:
            with pytest.raises(TokensError, match="only encodes"):
                codec.decode(codec.encode(speechlike(4000), RATE))


def test_tokens_of_another_codec_are_refused(speaker: Codec) -> None:
    tokens = speaker.encode(speechlike(1000), RATE)
    refused(TokensError, "other-codec", lambda: speaker.decode(replace(tokens, model="other-codec")))
    refused(TokensError, "weights", lambda: speaker.decode(replace(tokens, fingerprint="0" * 16)))


def test_tokens_travel_through_a_file_and_flipped_bits_are_noticed(codec: Codec, tmp_path: Path) -> None:
    tokens, path = codec.encode([speechlike(4000), speechlike(700)], RATE), tmp_path / "a.vok"
    tokens.save(path)
    if codec.decodes:
        for a, b in zip(codec.decode(tokens), codec.decode(vokens.Tokens.load(path)), strict=True):
            assert np.array_equal(a, b)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(TokensError):
        vokens.Tokens.load(path)


def test_unknown_sources_say_what_is_known(tmp_path: Path) -> None:
    refused((CheckpointError, ConfigError), "mini", vokens.load, "minni")
    (tmp_path / "config.json").write_text(json.dumps({"system": "nothing", "config": {}}))
    refused(ConfigError, "speechtokenizer", vokens.load, tmp_path)


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    budget=st.integers(1, 3000),
)
def test_batches_hold_every_row_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(batches(lengths, budget))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(len(g) == 1 or len(g) * max(lengths[r] for r in g) <= budget for g in groups)
