"""Names and the files behind them: the codecs that `vokens.load` knows, their sources and licences.

A new codec is one `Entry`. A folder for each name, under VOKENS_CACHE or ~/.cache/vokens, has its files: those of the
Hugging Face hub lie in the cache that huggingface_hub shares, and links to them here.
"""

import difflib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

from vokens import needs
from vokens.atomic import atomic_write
from vokens.download import download, hub_endpoint, hub_file, hub_url
from vokens.errors import ConfigError, DownloadError
from vokens.install import install_line

WEIGHTS = Path(__file__).parent / "weights"  # of what the package embeds, a folder for each name


@dataclass(frozen=True)
class File:
    """One file of a codec.

    path: its name in the codec's folder. repo, filename, revision: its place on the Hugging Face hub. address: its
    place elsewhere. None of them when it is part of this package. sha256: None when its publisher states none. size:
    bytes of the released file, None when they are not known; never an estimate.
    """

    path: str
    repo: str | None = None
    filename: str | None = None
    sha256: str | None = None
    size: int | None = None
    address: str | None = None
    revision: str | None = None

    @property
    def url(self) -> str | None:
        """Its address; of the hub, on the mirror that HF_ENDPOINT names if there is one."""
        if self.address is not None:
            return self.address
        return None if self.repo is None else hub_url(self.repo, self.filename or self.path, self.revision)


@dataclass(frozen=True)
class Entry:
    """A codec that can be loaded by name.

    settings: its config, where its name says it and no file does. shared: the folder of its files, where several
    names have the same. bits_per_second: of codecs whose codebooks differ in size.
    """

    name: str
    system: str
    description: str
    sample_rate: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int
    licence: str
    source: str
    files: tuple[File, ...]
    settings: Mapping[str, Any] | None = None
    shared: str = ""
    bits_per_second: float | None = None

    @property
    def bitrate(self) -> float:
        """Bits per second of audio."""
        if self.bits_per_second is not None:
            return self.bits_per_second
        return self.frame_rate * self.num_codebooks * log2(self.codebook_size)

    @property
    def size_bytes(self) -> int | None:
        """What it takes on the disk, less configs and vocabularies; None where a file's size is not known."""
        sizes = [file.size for file in self.files if not file.path.endswith((".json", ".txt"))]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def size(self) -> str:
        """`size_bytes` in words."""
        return "size not known" if self.size_bytes is None else f"{self.size_bytes / 1e6:.0f} MB"

    @property
    def embedded(self) -> bool:
        """Whether it comes with this package."""
        return all(file.url is None for file in self.files)


def _embedded_files(name: str, *paths: str) -> tuple[File, ...]:
    sizes = [
        (WEIGHTS / name / path).stat().st_size if (WEIGHTS / name / path).exists() else None for path in paths
    ]
    return tuple(File(path, size=size) for path, size in zip(paths, sizes, strict=True))


def embedded(name: str) -> Entry | None:
    """One of `EMBEDDABLE` as it lies in this copy of the package; None where it is not there.

    Its rate and codebook are those of its config: other weights need no other line here.
    """
    if not (WEIGHTS / name / "config.json").is_file():
        return None
    system, description, part = EMBEDDABLE[name]
    try:
        config = json.loads((WEIGHTS / part / "config.json").read_text())["config"]
        size, stride = config["codebook_size"], config["first_stride"]
    except (OSError, ValueError, LookupError, TypeError):  # what is told of it would be wrong
        return None
    rate = 100 / (2 * stride * config.get("merge", 1))  # of 100 mel frames a second
    paths = sorted(
        path.relative_to(WEIGHTS / name).as_posix() for path in (WEIGHTS / name).rglob("*") if path.is_file()
    )
    files = _embedded_files(name, *(path for path in paths if path.endswith((".json", ".safetensors"))))
    heard = 24000 if system == "learnable" else 16000
    return Entry(name, system, description, heard, rate, 1, size, "Apache-2.0", "vokens", files)


def _s3tokenizer(name: str, place: str, sha256: str, size: int, description: str, version: int) -> Entry:
    """A release of CosyVoice's speech tokenizer, an ONNX graph on ModelScope (addresses of s3tokenizer 0.3.0)."""
    address = f"https://www.modelscope.cn/models/{place}"
    return Entry(
        name=name,
        system="s3tokenizer",
        description=f"{description}; encodes only",
        sample_rate=16000,
        frame_rate=25.0 if name.endswith("25hz") else 50.0,
        num_codebooks=1,
        codebook_size=4096 if version == 1 else 6561,
        licence="Apache-2.0",
        source=place.rsplit("/resolve", 1)[0],
        files=(File(address.rsplit("/", 1)[1], sha256=sha256, size=size, address=address),),
    )


def _s3gen(name: str, description: str, licence: str, source: str, files: tuple[File, ...]) -> Entry:
    """A release that speaks the tokens of an S3Tokenizer of 25 Hz."""
    return Entry(name, "s3gen", description, 24000, 25.0, 1, 6561, licence, source, files)


def _meanflow(name: str, repo: str) -> Entry:
    """The distilled S3Gen; Turbo and Nano publish the same file."""
    sha256 = "d65cb687a2ed581ee6cc297e919ffefa63386944f42364ae13b78a594945514f"
    file = File("s3gen_meanflow.safetensors", repo, sha256=sha256, size=1_064_875_036)
    return _s3gen(name, "S3 v2 tokens to speech in any voice, 2 steps", "MIT", repo, (file,))


# Size and hash of campplus.onnx, byte for byte the same in CosyVoice 2 and 3.
_CAMPPLUS = 28_303_423, "a6ac6a63997761ae2997373e2ee1c47040854b4b759ea41ec48e4e42df0f4d73"


def _cosyvoice2(path: str, size: int, sha256: str | None = None) -> File:
    address = f"https://www.modelscope.cn/models/iic/CosyVoice2-0.5B/resolve/master/{path}"
    return File(path, sha256=sha256, size=size, address=address)


def _language_model(name: str, description: str, source: str, weights: File) -> Entry:
    """llm.pt of CosyVoice 2 or 3, and Qwen2's sizes and pieces of text beside it."""
    place = str(weights.address).removesuffix(weights.path)
    names = (f"CosyVoice-BlankEN/{name}" for name in ("config.json", "vocab.json", "merges.txt"))
    files = (weights, *(File(path, address=place + path) for path in names))
    return Entry(name, "learnable_lm", description, 16000, 25.0, 1, 6561, "Apache-2.0", source, files)


def _cosyvoice3(path: str, size: int | None = None, sha256: str | None = None) -> File:
    place = "https://www.modelscope.cn/models/FunAudioLLM/Fun-CosyVoice3-0.5B-2512/resolve/master"
    return File(path, sha256=sha256, size=size, address=f"{place}/{path}")


def _hub(
    name: str,
    system: str,
    about: str,
    facts: tuple[int, float, int, int],
    licence: str,
    size: int | None = None,
) -> Entry:
    """A tokenizer that transformers ships. facts: rate (Hz), frames per second, codebooks, entries of each."""
    files = (File("config.json", name), File("model.safetensors", name, size=size))
    return Entry(name, system, about, *facts, licence, name, files)


def _opus(kbps: int) -> Entry:
    about, books = "Opus at a constant bitrate; needs av", kbps * 60 // 8
    settings = {"kbps": float(kbps)}
    return Entry(
        f"opus-{kbps}",
        "opus",
        about,
        16000,
        1000 / 60,
        books,
        256,
        "BSD-3-Clause",
        "PyAV, libopus",
        (),
        settings,
    )


def _codec2(mode: str, bits: int, samples: int) -> Entry:
    """bits: of a frame; samples: of a frame, at 8 kHz."""
    rate = 8000 / samples
    return Entry(
        f"codec2-{mode}",
        "codec2",
        "Codec2, a vocoder for radio; needs its programs",
        8000,
        rate,
        -(-bits // 8),
        256,
        "LGPL-2.1",
        "Debian codec2",
        (),
        {"mode": mode},
        bits_per_second=bits * rate,
    )


def _lyra(kbps: str, stages: int) -> Entry:
    place = "https://raw.githubusercontent.com/google/lyra/main/lyra/model_coeffs"
    files = tuple(
        File(f"{name}.tflite", sha256=sha256, size=size, address=f"{place}/{name}.tflite")
        for name, size, sha256 in (
            ("lyragan", 1475160, "50e7839cda4f30599a3a34cfaddcd9c98449b049eee884e1a74295780448ad06"),
            ("quantizer", 329012, "841ee05989687d32d1f616a8ad1419fc7eda37599d3c05c7cf5a0d60ccf8ac5c"),
            (
                "soundstream_encoder",
                1779200,
                "237da0b16226fb0a68d49551c81bebf614e42142af72764448359f68581e88f1",
            ),
        )
    )
    about, settings = "Lyra v2; needs ai-edge-litert", {"stages": stages}
    return Entry(
        f"lyra-{kbps}",
        "lyra",
        about,
        16000,
        50.0,
        stages,
        16,
        "Apache-2.0",
        "google/lyra",
        files,
        settings,
        "lyra-v2",
    )


_ENTRIES = (
    Entry(
        name="mini",
        system="mini",
        description="small codec that comes with the package: works offline, fast on a CPU",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="vokens",
        files=_embedded_files("mini", "config.json", "model.safetensors"),
    ),
    Entry(
        name="speechtokenizer_hubert_avg",
        system="speechtokenizer",
        description="first codebook semantic (HuBERT), trained on LibriSpeech",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="fnlp/SpeechTokenizer",
        files=(
            File(
                "config.json",
                "fnlp/SpeechTokenizer",
                "speechtokenizer_hubert_avg/config.json",
                sha256="ea343ad69ca7e70c8febf8fc4cda683b1c4b1c36709e5e577936ffb05d62e6eb",
            ),
            File(
                "SpeechTokenizer.pt",
                "fnlp/SpeechTokenizer",
                "speechtokenizer_hubert_avg/SpeechTokenizer.pt",
                sha256="d04593b6c9a4b475f91ca481141a6ef5b23e6ac112f347dd2b2717f193c1c728",
                size=481_906_997,
            ),
        ),
    ),
    Entry(
        name="speechtokenizer_snake",
        system="speechtokenizer",
        description="the same with Snake activations, trained on LibriSpeech and Common Voice (AnyGPT)",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="fnlp/AnyGPT-speech-modules",
        files=(
            File("config.json", "fnlp/AnyGPT-speech-modules", "speechtokenizer/config.json"),
            File("ckpt.dev", "fnlp/AnyGPT-speech-modules", "speechtokenizer/ckpt.dev"),
        ),
    ),
    Entry(
        name="socodec_16384x4_120ms_16khz_chinese",
        system="socodec",
        description="four ordered streams at 8.3 Hz and one vector for the voice; Chinese",
        sample_rate=16000,
        frame_rate=16000 / 1920,
        num_codebooks=4,
        codebook_size=16384,
        licence="MIT",  # of SoCodec's code and of HuBERT's release; SoCodec's weights come with no other statement
        source="hhguo/SoCodec",
        files=(
            File("socodec_16384x4_120ms_16khz_chinese.safetensors", "hhguo/SoCodec"),
            File("mel_vocoder_80dim_10ms_16khz.safetensors", "hhguo/SoCodec"),
            File("chinese-hubert-large-fairseq-ckpt.pt", "TencentGameMate/chinese-hubert-large"),
        ),
    ),
    _s3tokenizer(
        "speech_tokenizer_v1",
        "iic/cosyvoice-300m/resolve/master/speech_tokenizer_v1.onnx",
        "23b5a723ed9143aebfd9ffda14ac4c21231f31c35ef837b6a13bb9e5488abb1e",
        522_624_269,
        "semantic tokens of CosyVoice, 4096 by vector quantization",
        1,
    ),
    _s3tokenizer(
        "speech_tokenizer_v1_25hz",
        "iic/CosyVoice-300M-25Hz/resolve/master/speech_tokenizer_v1.onnx",
        "56285ddd4a83e883ee0cb9f8d69c1089b53a94b1f78ff7e4a0224a27eb4cb486",
        522_625_011,
        "semantic tokens of CosyVoice at half the rate",
        1,
    ),
    _s3tokenizer(
        "speech_tokenizer_v2_25hz",
        "iic/CosyVoice2-0.5B/resolve/master/speech_tokenizer_v2.onnx",
        "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71",
        496_082_973,
        "semantic tokens of CosyVoice 2, 6561 by finite scalar quantization",
        2,
    ),
    _s3tokenizer(
        "speech_tokenizer_v3_25hz",
        "FunAudioLLM/Fun-CosyVoice3-0.5B-2512/resolve/master/speech_tokenizer_v3.onnx",
        "23236a74175dbdda47afc66dbadd5bcb41303c467a57c261cb8539ad9db9208d",
        969_451_503,
        "semantic tokens of CosyVoice 3, 6561 by finite scalar quantization",
        3,
    ),
    _s3gen(
        "chatterbox_s3gen",
        "S3 v2 tokens to speech in any voice, 10 steps",
        "MIT",
        "ResembleAI/chatterbox",
        (
            File(
                "s3gen.safetensors",
                "ResembleAI/chatterbox",
                sha256="2b78103c654207393955e4900aac14a12de8ef25f4b09424f1ef91941f161d4e",
                size=1_056_484_620,
            ),
        ),
    ),
    _s3gen(
        "chatterbox_v3_s3gen",
        "S3 v2 tokens to speech in any voice, 10 steps; beside Chatterbox Multilingual V3",
        "MIT",
        "ResembleAI/chatterbox",
        (File("s3gen_v3.safetensors", "ResembleAI/chatterbox"),),
    ),
    _meanflow("chatterbox_turbo_s3gen", "ResembleAI/chatterbox-turbo"),
    _meanflow("chatterbox_nano_s3gen", "ResembleAI/chatterbox-nano"),
    _s3gen(
        "cosyvoice2_s3gen",
        "S3 v2 tokens to speech in any voice, 10 steps, trained to stream",
        "Apache-2.0",
        "iic/CosyVoice2-0.5B",
        (
            _cosyvoice2(
                "flow.pt",
                450_575_567,
                "ff4c2f867674411e0a08cee702996df13fa67c1cd864c06108da88d16d088541",
            ),
            _cosyvoice2(
                "hift.pt", 83_390_254, "3386cc880324d4e98e05987b99107f49e40ed925b8ecc87c1f4939432d429879"
            ),
            _cosyvoice2("campplus.onnx", *_CAMPPLUS),
            _cosyvoice2(
                "speech_tokenizer_v2.onnx",
                496_082_973,
                "d43342aa12163a80bf07bffb94c9de2e120a8df2f9917cd2f642e7f4219c6f71",
            ),
        ),
    ),
    _s3gen(
        "cosyvoice3_s3gen",
        "S3 v3 tokens to speech in any voice, 10 steps, trained to stream",
        "Apache-2.0",
        "FunAudioLLM/Fun-CosyVoice3-0.5B-2512",
        (
            _cosyvoice3("flow.pt", 1_329_116_148),
            _cosyvoice3("hift.pt", 83_202_622),
            _cosyvoice3("campplus.onnx", *_CAMPPLUS),
            _cosyvoice3(
                "speech_tokenizer_v3.onnx",
                969_451_503,
                "23236a74175dbdda47afc66dbadd5bcb41303c467a57c261cb8539ad9db9208d",
            ),
        ),
    ),
    _language_model(
        "cosyvoice2_lm",
        "text to S3 v2 tokens, in the voice of a prompt",
        "iic/CosyVoice2-0.5B",
        _cosyvoice2(
            "llm.pt", 2_023_316_821, "b144ef55b51ce8cfb79a73c90dbba0bdaba4e451c0ebcfab20f769264f84a608"
        ),
    ),
    _language_model(
        "cosyvoice3_lm",
        "text to S3 v3 tokens, in the voice of a prompt",
        "FunAudioLLM/Fun-CosyVoice3-0.5B-2512",
        _cosyvoice3("llm.pt"),
    ),
    # Sizes to three digits, as the hub's listing has them.
    _hub(
        "facebook/encodec_24khz",
        "encodec",
        "EnCodec, general audio",
        (24000, 75.0, 32, 1024),
        "MIT (of the code; none stated for the weights)",
        93_100_000,
    ),
    _hub("descript/dac_16khz", "dac", "Descript audio codec", (16000, 50.0, 12, 1024), "MIT", 297_000_000),
    _hub("descript/dac_24khz", "dac", "Descript audio codec", (24000, 75.0, 32, 1024), "MIT", 299_000_000),
    _hub("descript/dac_44khz", "dac", "Descript audio codec", (44100, 44100 / 512, 9, 1024), "MIT"),
    _hub(
        "kyutai/mimi",
        "mimi",
        "first codebook semantic (WavLM); of Moshi",
        (24000, 12.5, 32, 2048),
        "CC-BY-4.0",
    ),
    _hub(
        "hf-audio/xcodec-hubert-librispeech",
        "xcodec",
        "X-codec: a HuBERT beside the convolutions",
        (16000, 50.0, 8, 1024),
        "none stated",
    ),
    _hub(
        "HKUSTAudio/xcodec2-hf",
        "xcodec2",
        "X-codec 2: one code each 20 ms; of Llasa",
        (16000, 50.0, 1, 65536),
        "CC-BY-NC-4.0",
    ),
    _hub(
        "neuphonic/neucodec",
        "neucodec",
        "NeuCodec: after X-codec 2, speaks at 24 kHz",
        (24000, 50.0, 1, 65536),
        "Apache-2.0",
    ),
    _hub(
        "bosonai/higgs-audio-v2-tokenizer",
        "higgs_audio_v2_tokenizer",
        "Higgs Audio v2: after X-codec, half its frames",
        (24000, 25.0, 8, 1024),
        "Boson Higgs Audio 2 community licence",
    ),
    *(_opus(kbps) for kbps in (6, 8, 12, 16, 24)),
    *(
        _codec2(mode, bits, samples)
        for mode, bits, samples in (
            ("3200", 64, 160),
            ("2400", 48, 160),
            ("1600", 64, 320),
            ("1400", 56, 320),
            ("1300", 52, 320),
            ("1200", 48, 320),
            ("700C", 28, 320),
        )
    ),
    _lyra("3.2", 16),
    _lyra("6", 30),
    _lyra("9.2", 46),
)

# What a build of the package may hold beside mini: name -> (system, description, whose config knows its tokens).
EMBEDDABLE = {
    "s3_mini": ("s3tokenizer", "semantic tokens at 25 Hz, comes with the package; encodes only", "s3_mini"),
    "say": ("learnable", "text to speech in any voice, comes with the package: vokens say", "s3_mini"),
}
VOICE = "say"  # the model that speaks where none is named

MODELS: dict[str, Entry] = {
    entry.name: entry
    for entry in (_ENTRIES[0], *map(embedded, EMBEDDABLE), *_ENTRIES[1:])
    if entry is not None
}
# S3Gen -> the language model that was published beside it
LANGUAGE_MODELS = {"cosyvoice2_s3gen": "cosyvoice2_lm", "cosyvoice3_s3gen": "cosyvoice3_lm"}
# Released files that no name fetches, for who compares one: the tokenizer of several recordings at once.
OTHERS = (
    _cosyvoice2(
        "speech_tokenizer_v2.batch.onnx",
        496_095_794,
        "5b45a98572ed21e3a3ebf50201f3020567f7db40e9a57509b790b2982f5c07b7",
    ),
)

# Repositories as their authors published them -> the model in them: of all their files only its own are fetched.
# iic's are ids of ModelScope, the others of the Hugging Face hub.
PUBLISHED = {
    "ResembleAI/chatterbox": "chatterbox_s3gen",
    "ResembleAI/chatterbox-turbo": "chatterbox_turbo_s3gen",
    "ResembleAI/chatterbox-nano": "chatterbox_nano_s3gen",
    "FunAudioLLM/CosyVoice2-0.5B": "cosyvoice2_s3gen",
    "iic/CosyVoice2-0.5B": "cosyvoice2_s3gen",
    "FunAudioLLM/Fun-CosyVoice3-0.5B-2512": "cosyvoice3_s3gen",
    "iic/CosyVoice-300M": "speech_tokenizer_v1",
    "iic/CosyVoice-300M-25Hz": "speech_tokenizer_v1_25hz",
    "fnlp/SpeechTokenizer": "speechtokenizer_hubert_avg",
    "OpenMOSS-Team/SpeechTokenizer": "speechtokenizer_hubert_avg",
    "fnlp/AnyGPT-speech-modules": "speechtokenizer_snake",
    "hhguo/SoCodec": "socodec_16384x4_120ms_16khz_chinese",
}


def offline() -> tuple[str, ...]:
    """Names of the models in this copy of the package that a server and a page offer unasked."""
    return tuple(name for name in ("mini", VOICE) if name in MODELS)


def entries() -> list[Entry]:
    """All codecs that can be loaded by name."""
    return list(MODELS.values())


def get(name: str) -> Entry:
    """The model of this name. ConfigError with the nearest names, or files of a path, for any other."""
    if name not in MODELS:
        raise ConfigError(_unknown(name))
    return MODELS[name]


def published(repo_id: str, revision: str | None = None, variant: str | None = None) -> Entry | None:
    """The model of its authors' repository, with files from there; None for other names.

    revision: of the repository; its files then have a folder of their own and the hub's own hashes.
    variant: the stem of another of S3Gen's files in the repository, such as "s3gen_v3".
    """
    if repo_id not in PUBLISHED:
        return None
    entry, modelscope = MODELS[PUBLISHED[repo_id]], repo_id.startswith("iic/")
    if modelscope and revision:
        raise ConfigError(f"revision={revision!r} was given for {repo_id} of ModelScope: leave it out")
    if variant:
        return _variant(entry, repo_id, revision, variant)
    if modelscope:
        return entry
    files = tuple(
        replace(file, repo=repo_id, address=None, revision=revision, sha256=None if revision else file.sha256)
        if file.repo in (None, entry.source)
        else file  # a part that others published
        for file in entry.files
    )
    return replace(entry, files=files, shared=_hub_folder(repo_id, revision) if revision else entry.shared)


def _variant(entry: Entry, repo_id: str, revision: str | None, variant: str) -> Entry:
    path = f"{variant}.safetensors"
    known = [e for e in MODELS.values() if e.source == repo_id and e.files[0].path == path and not revision]
    if known:
        return known[0]
    if entry.system != "s3gen" or len(entry.files) > 1 or not re.fullmatch(r"s3gen\w*", variant):
        raise ConfigError(
            f"variant={variant!r} was given for {repo_id}: of Chatterbox's repositories the name of an S3Gen file "
            "without its suffix is accepted, such as 's3gen' or 's3gen_meanflow'; leave it out for others"
        )
    files = (File(path, repo_id, revision=revision),)
    return replace(entry, files=files, shared=_hub_folder(repo_id, revision))


def _unknown(name: str) -> str:
    if name in EMBEDDABLE:
        return (
            f"{name} is not in this copy of vokens ({WEIGHTS / name} is missing or not whole): install a release that "
            "has it, put a trained one there with recipes/embed_voice.py, or give a model of your own"
        )
    path = Path(name).expanduser()
    if "/" in name or re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=3)
        if not path.parent.is_dir():
            return f"there is no file or folder {name!r}, for there is no folder {str(path.parent)!r}: check the path"
        meant = f"did you mean {' or '.join(near)}?" if near else "check the path"
        return f"there is no file or folder {name!r}: {meant}"
    near = difflib.get_close_matches(name, MODELS, n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else "vokens models lists the names"
    return (
        f"no model is called {name!r}, and no such file or folder exists: {meant} "
        "(also accepted: a folder, a checkpoint file, a hub id such as org/name)"
    )


def source_of(model: str) -> str | None:
    """What `vokens.load` opens for the model that tokens name; None for one of the user's own."""
    return model if model in MODELS or "/" in model else None


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: `cache_dir`, else VOKENS_CACHE, else ~/.cache/vokens."""
    return Path(cache_dir or os.environ.get("VOKENS_CACHE") or "~/.cache/vokens").expanduser()


def folder(entry: Entry, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the files of a codec are, or will be."""
    if entry.embedded:
        return WEIGHTS / entry.name
    place = cache_folder(cache_dir) / (entry.shared or entry.name)
    # The benchmark keeps the models that judge, and shared ones beside them, in a folder of its own.
    judges = Path(os.environ.get("VOKENS_EVAL_MODELS") or "~/.cache/vokens-eval").expanduser() / entry.shared
    if entry.shared and cache_dir is None and all((judges / file.path).exists() for file in entry.files):
        return judges
    return place


def is_cached(entry: Entry, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether it opens without a download. (Files get their names only when whole and verified.)"""
    return all((folder(entry, cache_dir) / file.path).exists() for file in entry.files)


def lacking(entry: Entry) -> str:
    """Why a codec does not open on this machine as it is, with the remedy; "" where it does."""
    if sentence := needs.lacking(entry.system):
        return sentence
    return (
        ""
        if is_cached(entry)
        else f"its files are not on this machine: vokens.load({entry.name!r}) fetches them"
    )


def fetch(
    entry: Entry,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """The folder with all files of a codec, downloaded where missing. Raises DownloadError."""
    place = folder(entry, cache_dir)
    for file in entry.files:
        if file.url is not None:
            _obtain(file, place / file.path, progress, local_files_only, cache_dir)
        elif not (place / file.path).exists():
            raise DownloadError(
                f"{place / file.path}, a part of vokens, is missing: install vokens again "
                f"({install_line(options='--force-reinstall --no-deps')})"
            )
    return place


def _obtain(
    file: File,
    target: Path,
    progress: bool,
    local_files_only: bool,
    cache_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Have a file at its place: of the hub a link into the cache that huggingface_hub shares, else downloaded."""
    if file.repo is None or file.address is not None:
        download(
            str(file.url), target, sha256=file.sha256, progress=progress, local_files_only=local_files_only
        )
    elif not target.exists():
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        name = file.filename or file.path
        kept = hub_file(file.repo, name, revision=file.revision, sha256=file.sha256, **options)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a link to a file that is gone
            try:
                target.symlink_to(kept)
            except OSError:  # a system or a disk without links
                with atomic_write(target) as partial:
                    shutil.copyfile(kept, partial)
        except OSError as error:
            raise DownloadError(
                f"cannot write to {target.parent}: {error.strerror or error}; set VOKENS_CACHE to another folder"
            ) from error


def _hub_folder(repo_id: str, revision: str | None) -> str:
    return f"hub/{repo_id.replace('/', '--')}/{(revision or 'main').replace('/', '--')}"


def hub_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
    files: Iterable[str] = ("config.json", "model.safetensors"),
) -> Path:
    """The folder with `files` of a Hugging Face model repository, downloaded where missing.

    A branch, such as main, is kept as it was when first fetched; delete the folder to follow it.
    Raises DownloadError, also for repositories that do not hold these files.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise DownloadError(f"{repo_id!r} is not a hub id: give org/name")
    place = cache_folder(cache_dir) / _hub_folder(repo_id, revision)
    files = tuple(files)
    for name in files:
        try:
            file = File(name, repo_id, revision=revision)
            _obtain(file, place / name, progress, local_files_only, cache_dir)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. (As a codec, {hub_endpoint()}/{repo_id} must hold {' and '.join(files)}, "
                "written by save_pretrained)"
            ) from None
    return place
