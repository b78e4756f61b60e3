"""Learnable-Speech's language model: the published numbers, ragged batches as singles, memory as recomputation."""

from dataclasses import replace
from itertools import product

import lm_cases
import pytest
import torch
from conftest import close, refused, seeded
from golden.weights import fill_
from lm_cases import FOLDER, GOLDEN, HEADS, SALT, SPEECH, TINY, batch, published_state
from safetensors.torch import load_file
from speakers import qwen2

from vokens.errors import ConfigError, TokensError
from vokens.lm.cache import KVCache
from vokens.lm.qwen2 import Qwen2
from vokens.lm.sampling import COSYVOICE, GREEDY
from vokens.models.learnable import LearnableLM, LearnableLMConfig, SpeakerConfig, SpeakerEncoder
from vokens.models.learnable.durations import expected_positions, frame_positions
from vokens.models.learnable.loss import accuracy, dpo_loss, label_loss, sum_log_probs
from vokens.models.learnable.speaker import ReferenceMel

lm, corrected = lm_cases.lm, lm_cases.corrected
SPEAKER = load_file(FOLDER / "speaker_encoder.safetensors")


def changed(lm: LearnableLM, **settings) -> LearnableLM:
    """The same weights under another config."""
    torch.manual_seed(1)
    model = LearnableLM(replace(lm.config, **settings)).freeze()
    model.load_state_dict(model.state_dict() | lm.state_dict())
    return model


@pytest.fixture(scope="module")
def beside(corrected) -> LearnableLM:
    return changed(corrected, positions="progress", pace=4.5)


@pytest.fixture(scope="module")
def aligned(corrected) -> LearnableLM:
    model = changed(corrected, positions="aligned")
    model.durations.out.bias.fill_(1.2)  # some three tokens an id
    return model


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_speaker_encoder_matches(size):
    config = SpeakerConfig(published=True)
    if size == "tiny":
        config = SpeakerConfig(80, 128, 2, 4, 48, published=True)
    encoder = SpeakerEncoder(config).eval().requires_grad_(False)
    names = {"first": "init", "attention": "attn", "project": "output_proj", "out": "proj_out"}
    state = encoder.state_dict()
    there = {".".join(names.get(part, part) for part in name.split(".")): name for name in state}
    filled = fill_({name: state[ours].clone() for name, ours in there.items()}, SALT)
    encoder.load_state_dict({there[name]: value for name, value in filled.items()})
    mel = SPEAKER["mel"]
    x = encoder.first(mel)
    close(x[:, ::8], SPEAKER[f"{size}.init.every8"])
    for i, block in enumerate(encoder.attention):
        x = block(x, None)
        if f"{size}.attn.{i}.every8" in SPEAKER:
            close(x[:, ::8], SPEAKER[f"{size}.attn.{i}.every8"])
    close(encoder(mel), SPEAKER[f"{size}.out"])
    padded = torch.nn.functional.pad(mel, (0, 9))
    close(encoder(padded, torch.tensor([23, 23])), SPEAKER[f"{size}.padded_out"])
    turned = torch.cat([mel[..., :1], mel[..., 1:].flip(-1)], -1)
    close(encoder(turned), SPEAKER[f"{size}.tail_reversed_out"])
    close(encoder(mel[..., :1]), SPEAKER[f"{size}.one_frame_out"])


def test_corrected_speaker_encoder_hears_order_but_no_padding(corrected):
    encoder, mel = corrected.speaker_encoder, SPEAKER["mel"]
    alone = encoder(mel[:1, :, :15])
    padded = torch.cat([mel[:1, :, :15], torch.full((1, 80, 8), 5.0)], -1)
    both = encoder(torch.cat([padded, mel[1:]]), torch.tensor([15, 23]))
    torch.testing.assert_close(both[:1], alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(both[1:], encoder(mel[1:]), atol=2e-6, rtol=0)
    turned = torch.cat([mel[..., :1], mel[..., 1:].flip(-1)], -1)
    assert (encoder(turned) - encoder(mel)).abs().max() > 1e-4


def test_references_that_are_not_there_do_not_count(corrected):
    mels = GOLDEN["reference_mels"]
    one = corrected.speaker_of(mels[:, :1])
    some = corrected.speaker_of(mels, torch.tensor([[10, 0]] * 3))
    torch.testing.assert_close(some, one, atol=2e-6, rtol=0)
    nothing = corrected.speaker_of(mels, torch.zeros(3, 2, dtype=torch.long))
    torch.testing.assert_close(nothing, corrected.speaker_project.bias.expand(3, -1))


@pytest.mark.parametrize("case", ["uni", "bi", "mixed"])
def test_sequences_and_losses_match(lm, case):
    speaker = lm.speaker_of(GOLDEN["reference_mels"])
    close(speaker[:, None], GOLDEN["speaker_token"])
    bistream = {"uni": False, "bi": True, "mixed": [False, True, True]}[case]
    x, layout = lm.inputs(**batch(), speaker=speaker, bistream=bistream)
    scores, target = lm(**batch(), speaker=speaker, bistream=bistream)
    assert torch.equal(target, GOLDEN[f"{case}.target"].long())
    assert torch.equal((layout.rows >= 0).sum(1), GOLDEN[f"{case}.input_len"].long())
    close(label_loss(scores, target), GOLDEN[f"{case}.loss"])
    close(accuracy(scores, target), GOLDEN[f"{case}.acc"])
    nospk = lm.inputs(**batch(), bistream=bistream)[1]
    assert torch.equal(nospk.target, GOLDEN[f"{case}.nospk.target"].long())
    if case != "mixed":
        valid = (layout.rows >= 0)[..., None]
        close(x[..., ::8] * valid, GOLDEN[f"{case}.input.every8"] * valid)
        close(lm.backbone(x)[..., ::8] * valid, GOLDEN[f"{case}.hidden.every8_valid"])
        close(scores[..., ::4] * valid, GOLDEN[f"{case}.logits.every4_valid"])


def test_label_smoothing_variants_match(lm):
    scores, target = lm(**batch(), speaker=lm.speaker_of(GOLDEN["reference_mels"]))
    for smoothing, norm in product((0.0, 0.1), (0, 1)):
        if (key := f"uni.loss.smoothing{smoothing}.norm{norm}") in GOLDEN:
            close(label_loss(scores, target, smoothing=smoothing, per_token=bool(norm)), GOLDEN[key])
    close(label_loss(*lm(**batch())), GOLDEN["uni.nospk.loss"])


def test_gradients_match():
    model = LearnableLM.from_published(published_state(), HEADS).requires_grad_(True)
    label_loss(*model(**batch(), speaker=model.speaker_of(GOLDEN["reference_mels"]))).backward()
    close(model.marks.weight.grad, GOLDEN["uni.grad/llm_embedding.weight"], 1e-4)
    close(model.speech_embedding.weight.grad, GOLDEN["uni.grad/speech_embedding.weight"], 1e-4)
    words = model.backbone.embed_tokens.weight.grad
    close(words.norm(), GOLDEN["uni.grad_norm/embed_tokens"], 1e-4)
    first = model.speaker_encoder.first.weight.grad
    close(first.norm(), GOLDEN["uni.grad_norm/speaker_encoder.init.weight"], 1e-4)


def test_preferences_count_the_real_targets(lm):
    chosen = sum_log_probs(*lm(**batch()))
    other = {"speech": "reject_speech_token", "speech_lengths": "reject_speech_token_len"}
    rejected = sum_log_probs(*lm(**batch() | {name: GOLDEN[key].long() for name, key in other.items()}))
    close(chosen, GOLDEN["dpo.sum_logp.chosen"])
    close(rejected, GOLDEN["dpo.sum_logp.rejected"])
    same = dpo_loss(chosen, rejected, chosen, rejected)
    close(same, torch.tensor(2.0).log())
    assert dpo_loss(chosen + 9, rejected, chosen, rejected, beta=0.1) < same


def test_a_ragged_batch_trains_as_single_rows(lm):
    scores, target = lm(**batch(), bistream=True)
    for row in range(3):
        text, speech = (int(batch()[name][row]) for name in ("text_lengths", "speech_lengths"))
        single = {name: value[row : row + 1] for name, value in batch().items()}
        single |= {"text": single["text"][:, :text], "speech": single["speech"][:, :speech]}
        found, wanted = lm(**single, bistream=True)
        close(scores[row : row + 1, : found.shape[1]], found)
        assert torch.equal(target[row : row + 1, : found.shape[1]], wanted)


@torch.inference_mode()
def published_generation(lm: LearnableLM, kind: str) -> list[int]:
    """The published loop over our parts: an early end is drawn again; an id that is no code reads the last again."""
    facts, text = SPEECH["gen"][kind], GOLDEN["text_token"][0].long()
    start, task = lm.marks.weight.split(1)
    voice = lm.speaker_of(GOLDEN["reference_mels"][:1])
    words = lm.backbone.embed_tokens(torch.cat([text[:3], text[5:9]]))
    prompt = lm.speech_embedding(GOLDEN[f"gen.{kind}.prompt_speech"][0].long())
    sampling = {"greedy": GREEDY, "ras": COSYVOICE}[kind]
    cache, generator = KVCache(TINY.layers), seeded(facts["seed"])

    def read(x: torch.Tensor) -> torch.Tensor:
        return lm.head(lm.backbone(x[None], cache=cache)[:, -1])

    scores = read(torch.cat([start, voice, words, task, prompt]))
    close(scores[0].log_softmax(0), GOLDEN[f"gen.{kind}.logp_first"])
    found: list[int] = []
    for step in range(facts["max_len"]):
        token = sampling.draw(scores[0].log_softmax(0), found, generator)
        while token == 61 and step < facts["min_len"]:
            token = sampling.draw(scores[0].log_softmax(0), found, generator)
        if token == 61:
            break
        found += [token] if token < 61 else []
        scores = read(lm.speech_embedding(torch.tensor(found[-1:])))
    return found


@pytest.mark.parametrize("kind", ["greedy", "ras"])
def test_published_generation_matches(lm, kind):
    assert published_generation(lm, kind) == GOLDEN[f"gen.{kind}.tokens"].tolist()


@torch.inference_mode()
def test_the_backbone_is_that_of_transformers():
    """Two heads for each of the keys; whole, under positions with jumps, and in bfloat16 to its rounding."""
    pytest.importorskip("transformers")
    sizes = replace(TINY, rope_theta=1e4, norm_eps=1e-5)
    rope = {"rope_type": "default", "rope_theta": sizes.rope_theta}
    theirs = qwen2(sizes, rope_parameters=rope, rms_norm_eps=sizes.norm_eps).eval()
    ours = Qwen2(sizes).eval()
    torch.manual_seed(0)
    for weight in ours.parameters():
        weight.normal_(0, 0.3)
    theirs.load_state_dict(ours.state_dict())
    x, mask = torch.randn(2, 9, 64), torch.ones(2, 9, dtype=torch.long)
    at = torch.tensor([[0, 1, 2, 3, 9, 9, 10, 11, 40]]).expand(2, -1)
    for positions in (None, at):
        expected = theirs(inputs_embeds=x, attention_mask=mask, position_ids=positions).last_hidden_state
        close(ours(x, positions), expected)
        cache = KVCache(sizes.layers)
        first = ours(x[:, :4], None if positions is None else positions[:, :4], cache)
        rest = ours(x[:, 4:], None if positions is None else positions[:, 4:], cache)
        close(torch.cat([first, rest], 1), expected)
        assert cache.length == 9
    close(ours.bfloat16()(x.bfloat16()).float(), theirs(inputs_embeds=x).last_hidden_state, 0.1)


TEXTS = [GOLDEN["text_token"][row, :count] for row, count in ((0, 12), (1, 3), (2, 7))]
PROMPT = {"prompt_text": GOLDEN["text_token"][1, :5], "prompt_speech": GOLDEN["speech_token"][0, :20]}


@pytest.mark.parametrize("kind", ["corrected", "beside", "aligned"])
def test_batches_are_their_rows_and_streams_the_whole(kind, request):
    model = request.getfixturevalue(kind)
    speaker = model.speaker_of(GOLDEN["reference_mels"])
    more = {"corrected": [], "beside": [PROMPT]}
    aligned = [PROMPT, {"prompt_speech": PROMPT["prompt_speech"]}, {"speed": 1.5}]
    for options in ({}, *more.get(kind, aligned)):
        together = model.generate(TEXTS, speaker=speaker, sampler=GREEDY, **options)
        for text, voice, tokens in zip(TEXTS, speaker.split(1), together, strict=True):
            own = {"speaker": voice, "sampler": GREEDY, **options}
            assert torch.equal(tokens, model.generate([text], **own)[0])
            assert tokens.tolist() == list(model.stream(text, **own))


def test_memory_is_full_recomputation(corrected):
    speaker = corrected.speaker_of(GOLDEN["reference_mels"])
    found = corrected.generate(TEXTS, speaker=speaker, sampler=GREEDY)
    for row, (text, alone) in enumerate(zip(TEXTS, found, strict=True)):
        assert 2 * len(text) <= len(alone) <= 6 * len(text)
        lengths = torch.tensor([len(text)]), torch.tensor([len(alone)])
        scores, _ = corrected(text[None], lengths[0], alone[None], lengths[1], speaker=speaker[row : row + 1])
        asked = scores[0, 2 + len(text) :, :61][: len(alone)]
        assert torch.equal(asked.argmax(-1), alone)


def test_speech_beside_its_text_is_read_as_it_is_learned(beside):
    """At each utterance's own pace."""
    speaker = beside.speaker_of(GOLDEN["reference_mels"])
    for row, text in enumerate(TEXTS):
        voice, count = speaker[row : row + 1], 20 + row
        options = {"speaker": voice, "sampler": GREEDY, "speed": 4.5 * len(text) / count}
        (said,) = beside.generate([text], limits=(count, count), **options)
        lengths = torch.tensor([len(text)]), torch.tensor([count])
        scores, _ = beside(text[None], lengths[0], said[None], lengths[1], speaker=voice)
        assert torch.equal(scores[0, 2 + len(text) :, :61][:count].argmax(-1), said)
        at_another = beside(text[None], lengths[0], said[None, :-3], lengths[1] - 3, speaker=voice)[0]
        assert not torch.equal(at_another[:, :-4], scores[:, :-7])


def test_a_prompt_sets_the_pace(beside):
    text, options = GOLDEN["text_token"][0, :7], {**PROMPT, "sampler": GREEDY}
    (said,) = beside.generate([text], **options)
    assert torch.equal(said, changed(beside, pace=0.1).generate([text], **options)[0])


def test_places_of_text_and_speech(beside):
    _, layout = beside.inputs(**batch(), speaker=beside.speaker_of(GOLDEN["reference_mels"]))
    texts, speeches = batch()["text_lengths"], batch()["speech_lengths"]
    found = beside.positions(layout, texts, speeches)
    for row, (text, speech) in enumerate(zip(texts.tolist(), speeches.tolist(), strict=True)):
        spoken = 2 + (torch.arange(speech) + 0.5) / speech * text
        wanted = torch.cat([torch.arange(2 + text), torch.tensor([2.0]), spoken])
        close(found[row, : len(wanted)], wanted)


def test_positions_follow_durations():
    durations = torch.tensor([[2, 0, 1, 1], [1, 3, 9, 9]])
    places = frame_positions(durations, torch.tensor([4, 2]), torch.tensor([4, 8]))
    close(places[0, :5], torch.tensor([0.25, 0.75, 2.5, 3.5, 4.0]))
    # the padding's durations count nothing; 4 tokens are stretched to 8
    expected = [0.25, 0.75, *(1 + (n + 0.5) / 6 for n in range(6)), 2.0]
    close(places[1], torch.tensor(expected))


def test_a_prompt_takes_its_speech_and_sets_the_pace():
    durations = torch.full((5,), 2.0)
    places = expected_positions(durations, 2, 8, 1.0)  # at four tokens an id
    assert len(places) == 8 + 12 + 1
    close(places[[0, 7, 8, 20]], torch.tensor([0.125, 1.875, 2.125, 5.0]))
    without_speech = expected_positions(durations, 2, 0, 1.0)
    close(without_speech[[0, 6]], torch.tensor([2.25, 5.0]))
    close(expected_positions(durations, 0, 3, 2.0)[[0, 2, 3, 8]], torch.tensor([0.0, 0.0, 0.5, 5.0]))


def test_aligned_training_sees_what_generation_sees(aligned):
    """Scores of the pass over a whole row equal those of reading it token by token, at the same durations."""
    text, speaker = GOLDEN["text_token"][:1, :6].long(), aligned.speaker_of(GOLDEN["reference_mels"][:1])
    (said,) = aligned.generate([text[0]], speaker=speaker, sampler=GREEDY)
    lengths = torch.tensor([6])
    durations = aligned.durations(text, lengths, speaker).exp()
    expected = int(durations.sum().round())
    assert 3 * expected // 4 <= len(said) <= -(-5 * expected // 4)
    count = torch.tensor([expected])
    scores, _ = aligned(text, lengths, said[None, :expected], count, speaker=speaker, durations=durations)
    drawn = scores[0, 2 + 6 :, : aligned.config.speech_tokens].argmax(-1)
    assert torch.equal(drawn[: min(len(said), expected)], said[:expected])


def test_paces_are_obeyed_or_refused(corrected, beside, aligned):
    slow, fast = (len(aligned.generate(TEXTS, sampler=GREEDY, speed=s)[0]) for s in (0.5, 2.0))
    assert slow > 2 * fast
    refused(ConfigError, "whole text", lambda: next(iter(aligned.stream_text([TEXTS[0]]))))
    refused(ConfigError, "durations", lambda: aligned(**batch()))
    refused(ConfigError, "positions", corrected.generate, [[1, 2]], speed=2.0)
    for model in (beside, aligned):
        refused(ConfigError, "above 0", model.generate, [[1, 2]], speed=0.0)
    for values in ({"positions": "progress"}, {"pace": 2.0}, {"positions": "elsewhere"}):
        refused(ConfigError, "positions", replace, corrected.config, **values)


def test_own_generators_make_rows_independent(corrected):
    texts = [GOLDEN["text_token"][0, :5], GOLDEN["text_token"][1, :3]]
    generators = [seeded(seed) for seed in (7, 8)]
    found = corrected.generate(texts, generator=generators)
    (alone,) = corrected.generate(texts[1:], generator=seeded(8))
    assert torch.equal(found[1], alone)


@pytest.mark.parametrize("kind", ["corrected", "beside"])
def test_streaming_text_is_the_bistream_sequence(kind, request):
    corrected = request.getfixturevalue(kind)
    text, greedy = GOLDEN["text_token"][0, :12], GREEDY
    speaker = corrected.speaker_of(GOLDEN["reference_mels"][:1])
    whole = list(corrected.stream_text([text], speaker=speaker, sampler=greedy))
    for size in (1, 4, 7):
        assert list(corrected.stream_text(text.split(size), speaker=speaker, sampler=greedy)) == whole
    assert len(whole) > 36  # enough for the bistream layout
    ids = torch.tensor(whole)
    lengths = torch.tensor([12]), torch.tensor([len(ids)])
    options = {"speaker": speaker, "bistream": True}
    scores, target = corrected(text[None], lengths[0], ids[None], lengths[1], **options)
    codes = (target[0] >= 0) & (target[0] < 61)
    assert torch.equal(target[0][codes], ids)
    assert torch.equal(scores[0, codes, :61].argmax(-1), ids)


def test_streaming_speaks_before_the_text_ends(corrected):
    asked = []

    def pieces():
        for word in GOLDEN["text_token"][0].tolist():
            asked.append(word)
            yield [word]

    stream = corrected.stream_text(pieces(), sampler=GREEDY)
    first = [next(stream) for _ in range(15)]
    assert len(first) == 15
    assert len(asked) == 5
    next(stream)
    assert len(asked) == 10


def test_prompt_speech_fills_the_first_groups(corrected):
    text = GOLDEN["text_token"][0, :7]
    assert 10 <= len(list(corrected.stream_text([text], **PROMPT, sampler=GREEDY))) <= 42


def test_texts_are_read_by_the_front_end_of_the_config():
    torch.manual_seed(0)
    plain = LearnableLMConfig(TINY, None, speech_tokens=61)
    model = LearnableLM(replace(plain, front_end="characters", speech_per_text=(1.0, 2.0))).eval()
    said = model.generate(["Hello.", "yes"], prompt_text="well ", sampler=GREEDY)
    ids = [model.ids("well Hello."), model.ids("well yes")]
    alone = [model.generate([ids[0]], sampler=GREEDY, limits=(6, 12))[0]]
    alone += [model.generate([ids[1]], sampler=GREEDY, limits=(3, 6))[0]]
    assert all(torch.equal(a, b) for a, b in zip(said, alone, strict=True))
    refused(TokensError, "empty", model.generate, [""])
    refused(ConfigError, "front end", LearnableLM(plain).generate, ["Hello."])


def test_a_voice_is_the_mean_of_its_pieces(corrected):
    wave = torch.sin(torch.arange(24000 * 9) * 0.1 * (1 + torch.arange(24000 * 9) / 90000))
    parts = wave[: 24000 * 8].split(96000)
    first, second = (corrected.voice(part, sample_rate=24000) for part in parts)
    both = corrected.voice(wave, sample_rate=24000)  # the ninth second is left out
    vectors = [corrected.speaker_encoder(ReferenceMel()(part)[None]) for part in parts]
    close(both, corrected.speaker_from(sum(vectors) / 2))
    close(corrected.voice(wave[:96000], wave[96000:192000], sample_rate=24000), both)
    assert (first - second).abs().max() > 1e-4
    louder = corrected.voice(wave * 0.3, sample_rate=24000)
    assert (louder - both).abs().max() < 1e-4
    assert corrected.voice(wave[:2400], sample_rate=24000).shape == (1, 64)


def test_hidden_tokens_are_no_targets(lm):
    asked = torch.ones(batch()["speech"].shape, dtype=torch.bool)
    asked[:, 3:5] = False
    for bistream in (False, True):
        _, whole = lm(**batch(), bistream=bistream)
        _, target = lm(**batch(), bistream=bistream, loss_mask=asked)
        assert int((whole >= 0).sum() - (target >= 0).sum()) == 2 * len(whole)
        assert torch.equal(target[target >= 0], whole[target >= 0])


def test_what_cannot_be_said_is_named(lm):
    refused(TokensError, "empty text", lm.generate, [[]])
    refused(TokensError, "ids", lm.generate, [[120]])
    refused(TokensError, "ids", lm.generate, [[1]], prompt_speech=[61])
    refused(TokensError, "no text", lambda: list(lm.stream_text([])))
