"""Released files, which are not here, told by their sizes: names, types and shapes are ours by the tables."""

import json

import pytest
import torch

from vokens import registry
from vokens.models.learnable import LearnableLM, LearnableLMConfig
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
from vokens.models.s3gen.config import DIALECTS, S3GenModelConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer
from vokens.models.speechtokenizer import SpeechTokenizer, SpeechTokenizerConfig


def safetensors_bytes(state: dict) -> int:
    """Bytes of a file that holds these tensors: a length, names and places in order of type and name, numbers."""
    header, end = {}, 0
    for name, tensor in sorted(state.items(), key=lambda item: (item[1].is_floating_point(), item[0])):
        places, end = [end, end + tensor.nbytes], end + tensor.nbytes
        kind = "F32" if tensor.is_floating_point() else "I64"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": places}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


@pytest.mark.parametrize(
    ("release", "tensors", "buffers"),
    [("chatterbox", 2489, ["_mel_filters"]), ("chatterbox-turbo", 2491, ["_mel_filters", "window"])],
)
def test_chatterboxs_files_are_our_names_to_the_byte(release, tensors, buffers):
    """Every name, type and shape of the released files follows from their sizes, but for a swap of equal ones."""
    with torch.device("meta"):
        model = S3GenModel(DIALECTS[release])
        kept = {"_mel_filters": torch.zeros(128, 201), "window": torch.zeros(400)}
        parts = {
            "tokenizer": model.tokenizer.to_published() | {name: kept[name] for name in buffers},
            "speaker_encoder": model.speaker_encoder.state_dict(),
            "flow": flow_to_published(model.flow.state_dict()),
            "mel2wav": hift_to_published(model.mel2wav.state_dict()),
        }
    state = {f"{part}.{name}": tensor for part, names in parts.items() for name, tensor in names.items()}
    assert len(state) == tensors
    assert safetensors_bytes(state) == registry.get(f"{release.replace('-', '_')}_s3gen").files[0].size


@pytest.mark.parametrize(
    ("name", "file", "tensors"),
    [
        ("speechtokenizer_hubert_avg", "SpeechTokenizer.pt", 166),
        ("cosyvoice2_s3gen", "flow.pt", 1121),
        ("cosyvoice2_s3gen", "hift.pt", 328),
        ("cosyvoice2_lm", "llm.pt", 295),
        ("cosyvoice3_s3gen", "flow.pt", 330),
        ("cosyvoice3_s3gen", "hift.pt", 328),
        ("cosyvoice3_lm", "llm.pt", 293),
        ("speech_tokenizer_v3_25hz", "speech_tokenizer_v3.onnx", 198),
    ],
)
def test_released_files_have_our_counts_and_sizes(name, file, tensors):
    """torch writes 200 to 400 bytes beside each tensor, a graph of 198 weights some 1.4 MB of nodes."""
    state = published_state(name, file)
    assert len(state) == tensors
    if name == "cosyvoice3_lm":
        assert sum(tensor.numel() for tensor in state.values()) == 642_283_136  # its size is not known
    size = next(one.size for one in registry.get(name).files if one.path == file)
    numbers = {k: v for k, v in state.items() if not k.endswith("lm_head.weight")}  # tied: once in the file
    least, most = (0, 2e6) if file.endswith(".onnx") else (200 * tensors, 400 * tensors)
    assert size is None or least < size - sum(4 * tensor.numel() for tensor in numbers.values()) < most


def published_state(name: str, file: str) -> dict:
    """The tensors of a released file by our tables, without values."""
    with torch.device("meta"):
        if file == "llm.pt":
            config = LearnableLMConfig(speaker=None, release=name.removesuffix("_lm"))
            return LearnableLM(config).to_published()
        if name in RELEASES:
            return S3Tokenizer(RELEASES[name]).to_published()
        if file == "SpeechTokenizer.pt":
            return SpeechTokenizer(SpeechTokenizerConfig()).to_published()
        config = DIALECTS[name.removesuffix("_s3gen")]
        if file == "flow.pt":
            return flow_to_published(TokenToMel(config).state_dict())
        return hift_to_published(HiFTNetModel(S3GenModelConfig.of_flow(config).mel2wav).state_dict())


def test_every_entry_is_complete(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    for entry in registry.entries():
        assert registry.get(entry.name) is entry
        assert entry.licence
        assert entry.source
        assert entry.embedded or (
            (entry.size_bytes is None or entry.size_bytes > 1e6)
            and entry.source in str(entry.files[0].url)  # parts may be another's
        )
        for file in entry.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and file.sha256 == file.sha256.lower())
            assert file.size is None or file.size % 10_000, "a rounded size is none"
    base = "https://huggingface.co/fnlp/SpeechTokenizer/resolve/main/speechtokenizer_hubert_avg"
    assert registry.get("speechtokenizer_hubert_avg").files[0].url == f"{base}/config.json"
    assert registry.MODELS["mini"].embedded
    assert registry.folder(registry.MODELS["mini"]).parts[-3:] == ("vokens", "weights", "mini")


def test_a_size_that_is_not_known_is_not_counted():
    known, unknown = registry.File("a.pt", size=2_000_000), registry.File("b.pt")
    facts = ("n", "mini", "", 16000, 50.0, 8, 1024, "MIT", "org/name")
    assert registry.Entry(*facts, files=(known, registry.File("config.json"))).size == "2 MB"
    whole = registry.Entry(*facts, files=(known, unknown))
    assert (whole.size_bytes, whole.size) == (None, "size not known")
    sizes = {file.path: file.size for file in registry.get("cosyvoice2_s3gen").files}
    assert sizes == {
        "flow.pt": 450_575_567,
        "hift.pt": 83_390_254,
        "campplus.onnx": 28_303_423,
        "speech_tokenizer_v2.onnx": 496_082_973,
    }
