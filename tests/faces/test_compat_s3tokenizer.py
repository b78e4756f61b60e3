"""Code written for the package s3tokenizer: its README's usages, its helpers, and its command line."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused, speechlike
from torch.distributed import TCPStore

import vokens.compat.s3tokenizer as s3tokenizer
from vokens import audio
from vokens.compat.s3tokenizer.__main__ import main
from vokens.errors import CheckpointError, ConfigError, VokensError
from vokens.models.s3tokenizer import RELEASES, S3Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/s3tokenizer"
RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random codec as a folder, and recordings of several lengths, rates and channels."""
    root = tmp_path_factory.mktemp("compat")
    torch.manual_seed(0)
    codec = S3Tokenizer(replace(RELEASES["speech_tokenizer_v2_25hz"], width=64, heads=1, layers=1))
    codec.eval().save_pretrained(root / "model")
    (root / "audio with blanks").mkdir()
    for i, seconds in enumerate((1.5, 0.011, 2.0, 33.0, 0.7)):
        audio.save(root / f"audio with blanks/{i}.wav", speechlike(int(seconds * RATE), seed=i), RATE)
    stereo = np.stack([speechlike(44100, seed=8), speechlike(44100, seed=9)], 1)
    soundfile.write(root / "audio with blanks/5.flac", stereo, 44100)
    (root / "audio with blanks/6.wav").write_bytes(b"RIFF, but no more")
    return root


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    codec = s3tokenizer.load_model(str(folder / "model")).codec
    waves = {
        i: s3tokenizer.load_audio(str(folder / f"audio with blanks/{i}"))
        for i in ("0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "5.flac")
    }
    return {Path(i).stem: codec.encode(wave, RATE).codes[0, 0].tolist() for i, wave in waves.items()}


def test_offline_batches_and_long_audio(folder, expected):
    tokenizer = s3tokenizer.load_model(str(folder / "model"))
    for keys in ("0", "2"), ("0", "3", "4"):  # the second with 33 s, in windows
        mels = []
        for key in keys:
            sound = s3tokenizer.load_audio(str(folder / f"audio with blanks/{key}.wav"))
            mels.append(s3tokenizer.log_mel_spectrogram(sound))
        mels, mels_lens = s3tokenizer.padding(mels)
        codes, codes_lens = tokenizer.quantize(mels, mels_lens)
        for i, key in enumerate(keys):
            assert codes[i, : codes_lens[i].item()].tolist() == expected[key]
        again, _ = tokenizer(mels, mels_lens)
        assert torch.equal(again, codes)


def test_the_parts_of_a_tokenizer(folder):
    tokenizer = s3tokenizer.load_model(str(folder / "model"))
    tokenizer.freeze()
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert tokenizer.device == torch.device("cpu")
    mel, lengths = torch.randn(2, 128, 50), torch.tensor([50, 21])
    codes, counts = tokenizer.quantize(mel, lengths)
    hidden, hidden_counts = tokenizer.encoder(mel, lengths)
    actual = tokenizer.quantizer.encode(hidden)
    assert torch.equal(counts, hidden_counts)
    for row, count in enumerate(counts.tolist()):
        assert torch.equal(actual[row, :count], codes[row, :count])
    refused(NotImplementedError, "v1", tokenizer.quantizer.decode, codes)


def test_v1_has_codewords():
    sizes = {"width": 64, "heads": 1, "layers": 1, "codebook_size": 16}
    codec = S3Tokenizer(replace(RELEASES["speech_tokenizer_v1"], **sizes))
    tokenizer = s3tokenizer.S3Tokenizer(codec)
    codes = torch.tensor([[3, 1, 15]])
    words = tokenizer.quantizer.decode(codes)
    assert words.shape == (1, 64, 3)
    assert torch.equal(words[0, :, 2], codec.codebook.decode(torch.tensor(15)))


def test_names_files_and_caches(tiny_codec_folder, tmp_path, monkeypatch):
    releases = ("v1", "v1_25hz", "v2_25hz", "v3_25hz")
    assert s3tokenizer.available_models() == [f"speech_tokenizer_{name}" for name in releases]
    refused(VokensError, "speech_tokenizer_v2_25hz", s3tokenizer.load_model, "speech_tokenizer_v2_25")
    refused(ConfigError, "mini, not an S3Tokenizer", lambda: s3tokenizer.load_model(str(tiny_codec_folder)))
    refused(ConfigError, "give speech_tokenizer_v1", s3tokenizer.S3Tokenizer, "v2")
    # What the published package downloaded is used, at its place.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "s3tokenizer").mkdir()
    (tmp_path / "s3tokenizer/speech_tokenizer_v1.onnx").write_bytes((GOLDEN / "onnx_v1.onnx").read_bytes())
    small = {"long_audio": "published", "config": {"heads": 1}}  # a graph of no release's size
    for root in (None, str(tmp_path / "s3tokenizer")):
        tokenizer = s3tokenizer.load_model("speech_tokenizer_v1", root, **small)
        assert (tokenizer.config.first_stride, tokenizer.config.long_audio) == (1, "published")


@pytest.mark.parametrize("version", ["v1", "v1_25hz", "v2", "v3"])
def test_graphs_become_state_dicts(version, tmp_path):
    graph, file = str(GOLDEN / f"onnx_{version}.onnx"), str(tmp_path / "x.pt")
    state = s3tokenizer.onnx2torch(graph)
    assert s3tokenizer.onnx2torch_v3(graph, file, True) is None
    saved = torch.load(file, weights_only=True)
    expected = json.loads((GOLDEN / "onnx_expected.json").read_text())[f"onnx_{version}.onnx"]
    assert state.keys() == saved.keys() == expected.keys()
    assert all(torch.equal(state[name], saved[name]) for name in state)
    settings = {"heads": 2, "first_stride": 1 if version == "v1" else 2}
    config = S3Tokenizer.from_published(state, settings).config
    tokenizer = s3tokenizer.S3Tokenizer(S3Tokenizer(config))
    for init, source in ((tokenizer.init_from_pt, file), (tokenizer.init_from_onnx, graph)):
        torch.nn.init.zeros_(tokenizer.codec.encoder.conv1.weight)
        init(source)
        assert torch.equal(tokenizer.codec.encoder.conv1.weight, state["encoder.conv1.weight"])


def test_masks_and_padding():
    lengths = torch.tensor([5, 3, 2])
    mask = s3tokenizer.make_non_pad_mask(lengths)
    assert mask.tolist() == [[place < n for place in range(5)] for n in (5, 3, 2)]
    assert s3tokenizer.make_non_pad_mask(lengths, 7).shape == (3, 7)
    bias = s3tokenizer.mask_to_bias(mask, torch.float16)
    assert bias.dtype == torch.float16
    assert torch.equal(bias == 0, mask)
    for wrong in ((mask.long(), torch.float32), (mask, torch.int64)):
        refused(ConfigError, "bool", s3tokenizer.mask_to_bias, *wrong)
    mels, counts = s3tokenizer.padding([torch.ones(128, 3), torch.ones(128, 1)])
    assert (tuple(mels.shape), counts.tolist(), counts.dtype) == ((2, 128, 3), [3, 1], torch.int32)
    assert not mels[1, :, 1:].any()


def test_recorded_merges():
    for case in json.loads((GOLDEN / "merge.json").read_text()).values():
        step = int(case["segment_k_starts_at"].removeprefix("k * "))
        segments = [list(range(k * step, k * step + n)) for k, n in enumerate(case["lengths"])]
        merged = s3tokenizer.merge_tokenized_segments(segments, case["overlap"], case["token_rate"])
        runs = case["merged_runs_inclusive"]
        assert merged == [token for first, last in runs for token in range(first, last + 1)]


def test_log_mels(folder):
    file = str(folder / "audio with blanks/2.wav")
    wave = s3tokenizer.load_audio(file)
    mel = s3tokenizer.log_mel_spectrogram(file)
    assert mel.shape == (128, 200)
    for same in (wave, wave.numpy(), wave[None].double()):
        assert torch.equal(s3tokenizer.log_mel_spectrogram(same).reshape(128, -1), mel)
    together = s3tokenizer.log_mel_spectrogram(torch.stack([wave, 100 * wave]))
    assert torch.equal(together[0], mel)  # a loud neighbour changes nothing
    assert s3tokenizer.log_mel_spectrogram(wave, 80, padding=1600).shape == (80, 210)
    refused(ConfigError, "n_mels=64", s3tokenizer.log_mel_spectrogram, wave, 64)


def test_audio_is_the_first_channel_at_16_khz(folder):
    file = str(folder / "audio with blanks/5.flac")
    first = torch.from_numpy(soundfile.read(file, dtype="float32")[0][:, 0].copy())
    assert torch.equal(s3tokenizer.load_audio(file), audio.sinc_resample(first, 44100, 16000))


def scp(folder: Path, path: Path, keys: str = "0123456") -> Path:
    lines = [f"{key}\t{folder}/audio with blanks/{key}.{'flac' if key == '5' else 'wav'}" for key in keys]
    path.write_text("\n".join([*lines, ""]))
    return path


def read(part: Path) -> dict[str, list[int]]:
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    assert all(line.keys() == {"key", "code"} for line in lines)
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line["code"] for line in lines}


@pytest.fixture
def flags(folder):
    """The codec, on a CPU."""
    return ["--model", str(folder / "model"), "--device", "cpu", "--batch_size", "2"]


@pytest.fixture
def command(flags):
    """The command line with these flags."""
    return lambda *more: main([*flags, *more])


@pytest.fixture
def listed(folder, tmp_path):
    """The flags from a list of all recordings to tmp_path."""
    return ["--wav_scp", str(scp(folder, tmp_path / "x.scp")), "--output_dir", str(tmp_path)]


@pytest.mark.parametrize("workers", ["0", "4"])
def test_a_list_becomes_json_lines(workers, listed, tmp_path, expected, command, capsys):
    listed[-1] += "/new/out"
    assert command(*listed, "--num_workers", workers, "--prefetch", "1") == 1  # one recording is no audio
    actual = read(tmp_path / "new/out/part_1_of_1")
    assert [*actual.items()] == [*expected.items()]  # in order
    message = capsys.readouterr().err
    assert "6 failed" in message
    assert "6 of 7 done" in message


def test_processes_share_the_list(listed, tmp_path, expected, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = {}
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        # A bad recording must not make torchrun end the others.
        assert command(*listed) == 0
        part = read(tmp_path / f"part_{rank + 1}_of_3")
        assert not parts.keys() & part.keys()
        parts |= part
    assert parts == expected


@pytest.mark.parametrize("good", [False, True])
def test_processes_that_all_failed_are_a_failure(good, folder, listed, command, monkeypatch):
    """The last to end says so, through the store that torchrun keeps: a process that ends alone stops no other."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    facts = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in (facts | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    bad, fine = (f"{folder}/audio with blanks/{name}.wav" for name in "60")
    Path(listed[1]).write_text(f"a {fine if good else bad}\nb {bad}\n")
    codes = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        codes.append(command(*listed))
    assert codes == [0, 0 if good else 1]


def test_a_stopped_run_goes_on(folder, tmp_path, expected, command):
    part = tmp_path / "part_1_of_1"
    first, second = (json.dumps({"key": key, "code": [1]}) + "\n" for key in "04")
    part.write_text(first + second[: len(second) // 2])  # killed while it wrote
    flags = ["--wav_scp", str(scp(folder, tmp_path / "x.scp", "012345")), "--output_dir", str(tmp_path)]
    assert command(*flags, "--skip_existing") == 0
    assert read(part) == expected | {"0": [1]}  # what was there is kept, the half line written again
    written = part.read_bytes()
    assert command(*flags, "--skip_existing") == 0
    assert part.read_bytes() == written
    assert command(*flags) == 0
    assert read(part) == expected


def test_files_beside_files(folder, tmp_path, expected, command):
    source = folder / "audio with blanks"
    for name in ("0.wav", "4.wav", "5.flac", "6.wav"):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / name).write_bytes((source / name).read_bytes())
    (tmp_path / "top").mkdir()
    (tmp_path / "top/linked").symlink_to(tmp_path / "deep")  # links are followed, hidden files left out
    (tmp_path / "deep/up").symlink_to(tmp_path / "top")
    (tmp_path / "deep/._0.wav").touch()
    assert command("--root_path", str(tmp_path / "top"), "--extensions", ".WAV") == 1
    assert sorted(path.name for path in tmp_path.rglob("*_fsq.pt")) == ["0_fsq.pt", "4_fsq.pt"]
    target = tmp_path / "deep/0_fsq.pt"
    codes = torch.load(target, weights_only=True)
    assert (codes.dtype, codes.tolist()) == (torch.int64, expected["0"])
    assert codes.untyped_storage().nbytes() == 8 * len(codes)  # and not the batch's
    stamp = target.stat().st_mtime_ns
    (tmp_path / "files.txt").write_text(f"# mine\n{tmp_path}/deep/0.wav\n\n{tmp_path}/deep/5.flac\n")
    assert command("--file_list", str(tmp_path / "files.txt"), "--skip_existing") == 0
    assert torch.load(tmp_path / "deep/5_fsq.pt", weights_only=True).tolist() == expected["5"]
    assert target.stat().st_mtime_ns == stamp


def test_what_was_found_is_kept(folder, tmp_path, command, capsys):
    for name in ("b/0.wav", "a/deep/4.wav", "5.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((folder / "audio with blanks/0.wav").read_bytes())
    cache = tmp_path / "found.json"
    flags = ["--root_path", str(tmp_path), "--cache_file", str(cache)]
    flags += ["--scan_workers", "2", "--skip_existing"]
    assert command(*flags) == 0
    assert len(list(tmp_path.rglob("*_fsq.pt"))) == 3
    assert json.loads(cache.read_text())["files"] == [
        str(tmp_path / name) for name in ("5.wav", "a/deep/4.wav", "b/0.wav")
    ]
    (tmp_path / "b/0.wav").rename(tmp_path / "b/1.wav")
    (tmp_path / "b/0_fsq.pt").unlink()
    assert command(*flags, "--use_cache") == 1  # it is looked for where it was
    assert command(*flags, "--extensions", ".flac") == 2  # another search
    assert command(*flags) == 0
    assert (tmp_path / "b/1_fsq.pt").exists()
    cache.write_text("[]")
    capsys.readouterr()
    assert command(*flags) == 2
    assert "--no_cache replaces it" in capsys.readouterr().err
    assert command(*flags, "--no_cache") == 0
    assert len(json.loads(cache.read_text())["files"]) == 3


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_wrong_calls_are_explained(listed, tmp_path, command, capsys):
    contents = {"bad": "alone\n", "empty": "\n", "pipe": "k sox a.wav -t wav - speed 1.1 |\n"}
    for name, content in contents.items():
        (tmp_path / f"{name}.scp").write_text(content)
    (tmp_path / "both").mkdir()
    for name in ("1.wav", "1.flac"):
        (tmp_path / "both" / name).touch()
    out = listed[2:]
    calls = {
        "either --wav_scp": out,
        "needs --output_dir": listed[:2],
        "'alone' has no path": ["--wav_scp", f"{tmp_path}/bad.scp", *out],
        "names no recording": ["--wav_scp", f"{tmp_path}/empty.scp", *out],
        "No such file": ["--wav_scp", f"{tmp_path}/none.scp", *out],
        "'k' is a command": ["--wav_scp", f"{tmp_path}/pipe.scp", *out],
        f"1.wav would both become {tmp_path}/both/1_fsq.pt": ["--root_path", str(tmp_path / "both")],
        "is not a folder": ["--root_path", f"{tmp_path}/none"],
        "at least 1": [*listed, "--batch_size", "0"],
    }
    for words, flags in calls.items():
        assert command(*flags) == 2
        assert words in one_line(capsys)
    assert not list(tmp_path.glob("part_*"))
    assert command(*listed, "--device", "cuda:99") == 2
    assert "s3tokenizer: error: device 'cuda:99' cannot be used here" in one_line(capsys)


def test_the_program_is_the_packages_own_where_that_is_installed(tmp_path, monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["s3tokenizer"].split(":")
    program = getattr(import_module(module), name)
    if not list(metadata.distributions(name="s3tokenizer")):  # make peers installs it
        monkeypatch.setattr(sys, "argv", ["s3tokenizer", "--help"])
        refused(SystemExit, "0", program)
    (tmp_path / "s3tokenizer-0.3.0.dist-info").mkdir()
    (tmp_path / "s3tokenizer-0.3.0.dist-info/METADATA").write_text("Name: s3tokenizer\nVersion: 0.3.0\n")
    entry = "[console_scripts]\ns3tokenizer = published_program:main\n"
    (tmp_path / "s3tokenizer-0.3.0.dist-info/entry_points.txt").write_text(entry)
    (tmp_path / "published_program.py").write_text("def main(): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert program() == 7


def test_load_model_takes_what_its_error_asks_for(tmp_path):
    config = replace(RELEASES["speech_tokenizer_v1"], width=64, heads=1, layers=1)
    torch.save(S3Tokenizer(config).to_published(), tmp_path / "v1.pt")
    load = partial(s3tokenizer.load_model, str(tmp_path / "v1.pt"))
    refused(CheckpointError, r"config=\{'heads': n\}", load)
    refused(CheckpointError, 'config="speech_tokenizer_v1"', load, config={"heads": 1})
    assert load(config={"heads": 1, "first_stride": 1}).codec.frame_rate == 50
    refused(CheckpointError, "not of speech_tokenizer_v1: width 64", load, config="speech_tokenizer_v1")


@pytest.mark.slow
def test_under_torchrun(flags, listed, tmp_path, expected):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    program = tmp_path / "s3tokenizer"  # as pip writes it
    call = "from vokens.compat.s3tokenizer.__main__ import script; raise SystemExit(script())\n"
    program.write_text(call)
    subprocess.run([*torchrun, program, *listed, *flags], check=True)
    assert read(tmp_path / "part_1_of_2") | read(tmp_path / "part_2_of_2") == expected
