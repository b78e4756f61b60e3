"""The command line, in process, with a tiny random codec on synthetic audio (and on the shipped samples)."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_tiny_s3tokenizer, build_tiny_speechtokenizer, refused, speechlike

import vokens
from vokens import registry
from vokens.cli import VERBS, main
from vokens.cli.jobs import Job, Source, find_sources, plan
from vokens.cli.options import codebook_range
from vokens.errors import ConfigError
from vokens.install import install_line
from vokens.tokens import Tokens

RATE = 16000
CODEBOOKS = 4


@pytest.fixture(scope="module")
def codec_folder(tiny_codec_folder: Path) -> str:
    """The folder of a small random codec, as it stands on a command line."""
    return str(tiny_codec_folder)


def sound(seconds: float = 0.3, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return speechlike(round(seconds * rate), seed, rate)


def write_sound(path: Path, seconds: float = 0.3, seed: int = 0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, seed, rate), rate)
    return path


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three recordings of different lengths and rates in two folders, and two files that are no audio."""
    write_sound(tmp_path / "in/a.wav", 0.3)
    write_sound(tmp_path / "in/sub/b.flac", 0.5, 1, 24000)
    write_sound(tmp_path / "in/sub/c.wav", 0.2, 2)
    (tmp_path / "in/notes.txt").write_text("not audio")
    (tmp_path / "in/._a.wav").write_bytes(b"left by macOS")
    return tmp_path


class TestFrame:
    """main: verbs, help, errors and exit codes."""

    def test_overview_names_every_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"  {name}" in text for name in VERBS)

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_explains_itself(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([verb, "--help"]) == 0
        assert f"usage: vokens {verb}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words", [[verb] for verb in VERBS] + [["bench", "reconstruct"], ["bench", "report"]]
    )
    def test_help_is_for_people(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*words, "--help"]) == 0
        page = capsys.readouterr().out
        for odd in ("{None}", "[STR [STR", ".compute", "default: None"):
            assert odd not in page
        for line in page.splitlines():
            assert len(re.findall(r"vokens [a-z]+ [^ ]+", line)) <= 1, line  # one example a line

    def test_no_verb_is_an_error(self) -> None:
        assert main([]) == 2

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"vokens {vokens.__version__}\n"

    def test_unknown_verb_suggests_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["enocde", "a.wav"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vokens: error: unknown verb 'enocde': did you mean 'encode'?")
        assert error.count("\n") == 1

    def test_unknown_option_is_exit_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["encode", "a.wav", "--overwite"]) == 2
        assert "--overwrite" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["--debug", "encode"], ["encode", "--debug"]])
    def test_debug_adds_a_traceback(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert error.splitlines()[-1].startswith("vokens: error: no input")
        assert main(["encode"]) == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_interrupt_is_130(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(registry, "entries", interrupt)
        assert main(["models"]) == 130

    @pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
    def test_help_is_quick_and_leaves_torch_alone(self, words: list[str]) -> None:
        """Processor time, as other work on the machine changes the clock: 0.3 s; torch alone takes 1.5 s."""
        code = f"import sys; from vokens.cli import main; main({words!r}); assert 'torch' not in sys.modules"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0

    def test_published_names_are_at_the_top_and_load_nothing(self) -> None:
        code = (
            "import sys, vokens; assert not {'torch', 'numpy'} & sys.modules.keys(); "
            "from vokens import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel; "
            "HiFTNetModel(HiFTNetConfig(base_channels=32)); S3GenModel, S3GenConfig(vocab_size=99)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_a_reader_that_leaves_is_quiet(self) -> None:
        """`vokens models | head -0`: the pipe's reading end is closed before anything is written."""
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "vokens", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert done.returncode == 141
        assert done.stderr == b""


class TestJobs:
    """Inputs and outputs are paired before any work."""

    PLAN: ClassVar[dict[str, Any]] = {"suffixes": (".wav", ".flac"), "outputs": (".vok", ".json")}
    PLAN |= {"suffix": None, "overwrite": False}

    def test_linked_folders_and_loops(self, tmp_path: Path) -> None:
        (tmp_path / "c/sub").mkdir(parents=True)
        (tmp_path / "far").mkdir()
        (tmp_path / "far/b.wav").touch()
        (tmp_path / "c/sub/linked").symlink_to(tmp_path / "far")
        (tmp_path / "far/up").symlink_to(tmp_path / "c")
        for spec in ("c", "c/**/*.wav"):
            assert [job.target for job in plan([f"{tmp_path}/{spec}"], None, **self.PLAN)] == [
                tmp_path / "c/sub/linked/b.vok"
            ]

    def test_names_that_differ_in_their_suffix_keep_it(self, tmp_path: Path) -> None:
        """As `vokens extract` names them; inputs of two folders are told apart by their folders alone."""
        (tmp_path / "c/d").mkdir(parents=True)
        for name in ("a.wav", "a.flac", "b.wav", "d/a.wav"):
            (tmp_path / "c" / name).touch()
        for output in (None, str(tmp_path / "c")):
            jobs = plan([str(tmp_path / "c")], output, **self.PLAN | {"suffixes": [".wav", ".flac"]})
            assert [job.target.relative_to(tmp_path / "c").as_posix() for job in jobs] == [
                "a.flac.vok", "a.wav.vok", "b.vok", "d/a.vok",
            ]  # fmt: skip
        jobs = plan([f"{tmp_path}/c/a.wav", f"{tmp_path}/c/d/a.wav"], None, **self.PLAN)
        assert [job.target.name for job in jobs] == ["a.vok", "a.vok"]

    def test_folder_keeps_its_structure_and_counts_the_rest(
        self, corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        jobs = plan([str(corpus / "in")], str(corpus / "out"), **self.PLAN)
        assert [job.target.relative_to(corpus / "out").as_posix() for job in jobs] == [
            "a.vok", "sub/b.vok", "sub/c.vok",
        ]  # fmt: skip
        assert "left out 2 files" in capsys.readouterr().err

    def test_glob_keeps_the_structure_below_its_fixed_part(self, corpus: Path) -> None:
        jobs = plan([str(corpus / "in/**/*.wav")], str(corpus / "out"), **self.PLAN)
        assert [job.target.relative_to(corpus / "out").as_posix() for job in jobs] == ["a.vok", "sub/c.vok"]

    def test_glob_that_names_folders_says_so(self, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert len(find_sources([str(corpus / "in/[as]*")], ())) == 1
        assert "left out 1 folders" in capsys.readouterr().err

    def test_a_file_with_glob_characters_is_a_file(self, tmp_path: Path) -> None:
        odd = write_sound(tmp_path / "take [1].wav")
        assert find_sources([str(odd)], ()) == [Source(odd, Path(odd.name))]

    def test_one_file_goes_beside_itself_or_where_told(self, corpus: Path) -> None:
        a = str(corpus / "in/a.wav")

        def target(output: str | None, **changed: object) -> Path | None:
            (job,) = plan([a], output, **{**self.PLAN, **changed})
            return job.target

        assert target(None) == corpus / "in/a.vok"
        assert target(str(corpus / "x.json")) == corpus / "x.json"
        assert target(str(corpus / "new")) == corpus / "new/a.vok"
        assert target(str(corpus / "v1.0") + "/") == corpus / "v1.0/a.vok"
        assert target(None, suffix=".json") == corpus / "in/a.json"
        assert target("-") is None

    def test_the_same_file_twice_is_one_job(self, corpus: Path) -> None:
        a = str(corpus / "in/a.wav")
        assert len(plan([a, a], str(corpus / "out"), **self.PLAN)) == 1

    def test_standard_input_goes_to_standard_output(self) -> None:
        assert plan(["-"], None, **self.PLAN) == [Job(Source(None, Path("stdin")), None, ".vok")]

    @pytest.mark.parametrize(
        ("inputs", "output", "changed", "message"),
        [
            ([], None, {}, "no input"),
            (["-", "-"], "x.vok", {}, "twice"),
            (["in/a.wav", "in/sub/c.wav"], "x.vok", {}, "2 inputs cannot become one file"),
            (["in"], "-", {}, "3 inputs cannot share standard output"),
            (["in/a.wav"], "x.aiff", {}, "use .vok, .json"),
            (["in/a.wav"], "README", {}, "README has no suffix"),
            (["in/a.wav"], "x.vok", {"suffix": ".json"}, "disagree"),
            (["in/nothing*"], None, {}, "no file matches"),
            (["empty"], None, {}, "no file below empty"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(
        self,
        inputs: list[str],
        output: str | None,
        changed: dict[str, object],
        message: str,
        corpus: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(corpus)
        (corpus / "empty").mkdir()
        (corpus / "README").touch()
        refused(ConfigError, message, plan, inputs, output, **{**self.PLAN, **changed})

    def test_two_inputs_for_one_output_are_refused(self, corpus: Path) -> None:
        write_sound(corpus / "in/sub/a.wav")
        with pytest.raises(ConfigError, match=r"in/a\.wav and .*sub/a\.wav would both become"):
            plan([str(corpus / "in/a.wav"), str(corpus / "in/sub/a.wav")], f"{corpus}/out/", **self.PLAN)

    def test_existing_outputs_are_named_before_any_work(self, corpus: Path) -> None:
        (corpus / "in/sub/b.vok").write_bytes(b"precious")
        with pytest.raises(ConfigError, match=r"b\.vok exists: --overwrite"):
            plan([str(corpus / "in")], None, **self.PLAN)
        assert len(plan([str(corpus / "in")], None, **{**self.PLAN, "overwrite": True})) == 3


class TestCodebookRange:
    @pytest.mark.parametrize(
        ("text", "first", "count", "expected"),
        [
            (None, 0, 8, (0, 8)),
            ("1", 0, 8, (0, 1)),
            ("2-8", 0, 8, (1, 8)),
            ("2-8", 1, 7, (0, 7)),
            ("3", 1, 7, (1, 2)),
        ],
    )
    def test_counts_the_codecs_codebooks_from_one(
        self, text: str | None, first: int, count: int, expected: tuple[int, int]
    ) -> None:
        assert codebook_range(text, first, count) == expected

    @pytest.mark.parametrize("text", ["0", "9", "3-2", "1-9", "one", "-1", "1,2", ""])
    def test_others_are_refused_with_those_present(self, text: str) -> None:
        refused(ConfigError, "1-8", codebook_range, text, 0, 8)

    def test_the_first_is_not_present_in_layers_two_to_eight(self) -> None:
        refused(ConfigError, "2-8", codebook_range, "1", 1, 7)


class TestEncodeDecode:
    def test_a_folder_gives_what_each_file_gives_alone(
        self, corpus: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["encode", str(corpus / "in"), "-o", str(corpus / "tok"), "-m", codec_folder]) == 0
        assert main(["decode", str(corpus / "tok"), "-o", str(corpus / "out"), "-m", codec_folder]) == 0
        codec = vokens.load(codec_folder)
        for name, suffix in (("a", ".wav"), ("sub/b", ".flac"), ("sub/c", ".wav")):
            alone = codec.encode(corpus / f"in/{name}{suffix}")
            assert len(alone.codes.unique()) > 8
            assert torch.equal(Tokens.load(corpus / f"tok/{name}.vok").codes, alone.codes)
            wave, rate = soundfile.read(corpus / f"out/{name}.wav", dtype="float32")
            assert rate == codec.sample_rate
            assert len(wave) == int(alone.num_samples[0])
            np.testing.assert_allclose(wave, codec.decode(alone)[0].clip(-1, 1), atol=2e-4)  # 16 bit
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("vokens: 3 of 3 done, 1.0 s of speech in") == 2

    @pytest.mark.parametrize("suffix", ["vok", "json", "npz", "pt"])
    def test_every_format_decodes_to_the_same_sound(
        self, suffix: str, tmp_path: Path, codec_folder: str
    ) -> None:
        a, tokens, wave = write_sound(tmp_path / "a.wav"), tmp_path / f"t.{suffix}", tmp_path / "out.flac"
        assert main(["encode", str(a), "-o", str(tokens), "-m", codec_folder]) == 0
        assert main(["decode", str(tokens), "-o", str(wave), "-m", codec_folder]) == 0
        codec = vokens.load(codec_folder)
        np.testing.assert_allclose(
            soundfile.read(wave)[0], codec.decode(codec.encode(a))[0].clip(-1, 1), atol=2e-4
        )

    def test_codebooks(self, tmp_path: Path, codec_folder: str) -> None:
        a = str(write_sound(tmp_path / "a.wav"))
        codec = vokens.load(codec_folder)
        everything = codec.encode(a)
        assert main(["encode", a, "-m", codec_folder, "--codebooks", "2"]) == 0
        assert torch.equal(Tokens.load(tmp_path / "a.vok").codes, everything.codes[:, :2])
        everything.save(tmp_path / "a.vok")
        for text, part in (("1", everything.select(0, 1)), (f"2-{CODEBOOKS}", everything.select(1))):
            out = str(tmp_path / f"{text}.wav")
            words = ["decode", str(tmp_path / "a.vok"), "-o", out, "-m", codec_folder]
            assert main([*words, "--codebooks", text]) == 0
            np.testing.assert_allclose(soundfile.read(out)[0], codec.decode(part)[0].clip(-1, 1), atol=2e-4)

    def test_too_many_codebooks(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a = str(write_sound(tmp_path / "a.wav"))
        assert main(["encode", a, "-m", codec_folder, "--codebooks", "9"]) == 2
        assert f"1 to {CODEBOOKS}" in capsys.readouterr().err

    def test_pipes(
        self,
        tmp_path: Path,
        codec_folder: str,
        monkeypatch: pytest.MonkeyPatch,
        capsysbinary: pytest.CaptureFixture[bytes],
    ) -> None:
        a = write_sound(tmp_path / "a.wav")
        give_stdin(monkeypatch, a.read_bytes())
        assert main(["encode", "-", "-m", codec_folder]) == 0
        content = capsysbinary.readouterr().out
        (tmp_path / "piped.vok").write_bytes(content)
        assert torch.equal(
            Tokens.load(tmp_path / "piped.vok").codes, vokens.load(codec_folder).encode(a).codes
        )
        give_stdin(monkeypatch, content)
        assert main(["decode", "-", "-o", "-", "--format", "flac", "-m", codec_folder]) == 0
        wave, rate = soundfile.read(io.BytesIO(capsysbinary.readouterr().out))
        assert (len(wave), rate) == (len(sound()), RATE)

    def test_json_to_standard_output_is_text(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a = str(write_sound(tmp_path / "a.wav"))
        assert main(["encode", a, "-o", "-", "--format", "json", "-m", codec_folder]) == 0
        assert json.loads(capsys.readouterr().out)["sample_rate"] == RATE

    def test_a_bad_file_is_named_and_the_others_go_on(
        self, corpus: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (corpus / "in/bad.wav").write_bytes(b"RIFF, but nothing that follows")
        words = ["encode", str(corpus / "in"), str(corpus / "gone.wav")]
        assert main([*words, "-o", str(corpus / "tok"), "-m", codec_folder]) == 1
        error = capsys.readouterr().err
        assert "bad.wav" in error
        assert "gone.wav" in error
        assert "3 of 5 done" in error
        assert "Traceback" not in error
        assert {path.name for path in (corpus / "tok").rglob("*")} == {"a.vok", "sub", "b.vok", "c.vok"}

    def test_one_bad_file_alone_is_exit_2(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["encode", str(tmp_path / "gone.wav"), "-m", codec_folder]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vokens: error: ")
        assert "gone.wav" in error
        assert error.count("\n") == 1

    def test_damaged_tokens(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a, tokens = write_sound(tmp_path / "a.wav"), tmp_path / "a.vok"
        assert main(["encode", str(a), "-m", codec_folder]) == 0
        content = bytearray(tokens.read_bytes())
        content[-1] ^= 1
        tokens.write_bytes(content)
        assert main(["decode", str(tokens), "-o", str(tmp_path / "out.wav"), "-m", codec_folder]) == 2
        assert "a.vok" in capsys.readouterr().err
        assert not (tmp_path / "out.wav").exists()

    def test_existing_output_needs_overwrite(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a, out = str(write_sound(tmp_path / "a.wav")), tmp_path / "a.vok"
        out.write_bytes(b"precious")
        assert main(["encode", a, "-m", codec_folder]) == 2
        assert str(out) in capsys.readouterr().err
        assert out.read_bytes() == b"precious"
        assert main(["encode", a, "-m", codec_folder, "--overwrite"]) == 0
        assert len(Tokens.load(out)) == 1

    def test_several_recordings_in_one_token_file_are_refused(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vokens.load(codec_folder).encode([sound(0.1), sound(0.2)], RATE).save(tmp_path / "two.vok")
        assert main(["decode", str(tmp_path / "two.vok"), "-m", codec_folder]) == 2
        assert "2 recordings" in capsys.readouterr().err

    @pytest.mark.parametrize("option", [("--model", "minj"), ("--device", "warp9"), ("--batch-seconds", "0")])
    def test_bad_options_name_what_was_given(
        self, option: tuple[str, str], tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["encode", str(write_sound(tmp_path / "a.wav")), "-m", codec_folder]
        assert main([*words, *option]) == 2
        assert option[1] in capsys.readouterr().err

    def test_bare_ids_decode_with_a_model(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokens = vokens.load(codec_folder).encode(sound(0.3), RATE)
        ids, folder = tokens.codes.numpy().astype(np.uint16), tmp_path / "ids"
        folder.mkdir()
        np.save(folder / "a.npy", ids[0])
        np.savez(folder / "b.npz", codes=ids, lengths=tokens.lengths)
        (folder / "c.json").write_text(json.dumps(ids[0].tolist()))
        (folder / "d.json").write_text(json.dumps({"codes": ids.tolist()}))
        torch.save(tokens.codes, folder / "e.pt")
        assert main(["decode", str(folder), "-m", codec_folder, "-o", str(tmp_path / "out")]) == 0
        made = [soundfile.read(path)[0] for path in sorted((tmp_path / "out").iterdir())]
        assert len(made) == 5
        assert all(np.allclose(wave, made[0], atol=1e-4) for wave in made)
        capsys.readouterr()
        assert main(["decode", str(folder / "a.npy")]) == 2
        assert "holds ids without their codec" in (error := capsys.readouterr().err)
        assert "--model" in error

    @pytest.mark.parametrize("content", [b"[1, ", b'["a"]', b"{}", b"\x93NUMPY\x01\x00", b"[[1, 2], [3]]"])
    def test_damaged_ids_are_one_line(
        self, content: bytes, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "ids.npy").write_bytes(content)
        assert main(["decode", str(tmp_path / "ids.npy"), "-m", codec_folder]) == 2
        assert capsys.readouterr().err.startswith("vokens: error: ")

    def test_tokens_of_ones_own_codec_ask_for_its_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        codec = build_tiny_speechtokenizer()
        own = str(codec.save_pretrained(tmp_path / "own"))
        write_sound(tmp_path / "a.wav")
        assert main(["encode", str(tmp_path / "a.wav"), "-m", own]) == 0
        assert main(["decode", str(tmp_path / "a.vok"), "-o", str(tmp_path / "b.wav")]) == 2
        error = capsys.readouterr().err
        assert f"a codec of your own, 'speechtokenizer' (fingerprint {codec.fingerprint})" in error
        assert "--model FOLDER" in error
        assert main(["decode", str(tmp_path / "a.vok"), "-o", str(tmp_path / "b.wav"), "--model", own]) == 0

    def test_tokens_that_cannot_be_decoded_are_refused_before_a_download(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("VOKENS_CACHE", str(tmp_path / "cache"))
        codec = build_tiny_s3tokenizer()
        codec.name = "speech_tokenizer_v2_25hz"
        codec.encode(sound(0.3), RATE).save(tmp_path / "a.vok")
        for more in ([], ["-m", "speech_tokenizer_v2_25hz"]):
            assert main(["decode", str(tmp_path / "a.vok"), *more]) == 2
            assert "speech_tokenizer_v2_25hz only encodes" in (error := capsys.readouterr().err)
            assert "vokens speak" in error
        assert not (tmp_path / "cache").exists()

    def test_a_device_that_is_not_here(self, tmp_path: Path, codec_folder: str) -> None:
        for device in ("cuda:99", "nothing", "mps"):
            with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used here: use auto, cpu"):
                vokens.load(codec_folder, device=device)
        assert vokens.load(codec_folder, device="auto").device.type in ("cpu", "cuda")


class TestRoundtrip:
    def test_writes_sound_and_picture_and_prints_the_numbers(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a = str(write_sound(tmp_path / "a.wav", rate=24000))
        out, picture = tmp_path / "new/out.wav", tmp_path / "new/out.png"
        words = ["roundtrip", a, "-o", str(out), "--picture", str(picture), "-m", codec_folder]
        assert main([*words, "--codebooks", "1"]) == 0
        text = capsys.readouterr().out
        for word in ("bitrate", "0.25 kbit/s", "15 frames", "codebooks 1", "entropy", "real-time factor"):
            assert word in text
        wave, rate = soundfile.read(out)
        assert (len(wave), rate) == (len(sound()), RATE)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert main(words) == 2
        assert "exists" in capsys.readouterr().err

    def test_tells_how_near_the_result_is(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from vokens.bench.metrics import closeness

        a = write_sound(tmp_path / "a.wav", seconds=1.0)
        assert main(["roundtrip", str(a), "-o", str(tmp_path / "b.wav"), "-m", codec_folder]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        printed = {" ".join(words[:-1]): words[-1] for words in lines}
        waves = [soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("a.wav", "b.wav")]
        for name, value in closeness(*waves, RATE).items():
            assert float(printed[name]) == pytest.approx(float(value), abs=0.02)  # b.wav has 16 bits
        soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.float32), RATE)
        assert main(["roundtrip", str(tmp_path / "silence.wav"), "-m", codec_folder]) == 0
        text = capsys.readouterr().out
        assert "the recording is silent" in text
        assert "mel distance" not in text

    def test_leaves_nothing_behind_without_matplotlib(
        self, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a, b = write_sound(tmp_path / "a.wav"), tmp_path / "b.wav"
        words = ["roundtrip", str(a), "-o", str(b), "-m", codec_folder]
        with pytest.MonkeyPatch.context() as missing:
            missing.setitem(sys.modules, "matplotlib", None)
            assert main([*words, "--picture", str(tmp_path / "new/b.png")]) == 2
        assert "matplotlib" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
        assert main(words) == 0  # the retry

    def test_writes_both_files_or_neither(self, tmp_path: Path, codec_folder: str) -> None:
        (tmp_path / "file").touch()
        words = ["roundtrip", str(write_sound(tmp_path / "a.wav")), "-m", codec_folder, "--picture"]
        for out, picture in (("file/b.wav", "b.png"), ("b.wav", "file/b.png")):
            assert main([*words, str(tmp_path / picture), "-o", str(tmp_path / out)]) != 0
            assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "file"]

    def test_equals_encode_then_decode(self, tmp_path: Path, codec_folder: str) -> None:
        a = str(write_sound(tmp_path / "a.wav"))
        assert main(["roundtrip", a, "-o", str(tmp_path / "r.wav"), "-m", codec_folder]) == 0
        assert main(["encode", a, "-m", codec_folder]) == 0
        vok, out = str(tmp_path / "a.vok"), str(tmp_path / "d.wav")
        assert main(["decode", vok, "-o", out, "-m", codec_folder]) == 0
        assert (tmp_path / "r.wav").read_bytes() == (tmp_path / "d.wav").read_bytes()

    def test_sound_on_standard_output_is_not_mixed_with_the_table(
        self,
        tmp_path: Path,
        codec_folder: str,
        monkeypatch: pytest.MonkeyPatch,
        capsysbinary: pytest.CaptureFixture[bytes],
    ) -> None:
        give_stdin(monkeypatch, write_sound(tmp_path / "a.wav").read_bytes())
        assert main(["roundtrip", "-", "-o", "-", "-m", codec_folder]) == 0
        captured = capsysbinary.readouterr()
        assert len(soundfile.read(io.BytesIO(captured.out))[0]) == len(sound())
        assert b"bitrate" in captured.err

    @pytest.mark.parametrize(
        ("option", "message"), [(("-o", "x.vok"), ".wav"), (("--picture", "x.bmp"), ".png")]
    )
    def test_unknown_suffixes(
        self, option: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["roundtrip", str(write_sound(tmp_path / "a.wav")), *option]) == 2
        assert message in capsys.readouterr().err


class TestModels:
    def test_table_and_json_agree(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["models"]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert main(["models", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert " ".join(header.split()) == "name system Hz kbit/s codebooks licence MB from opens"
        assert [row.split()[0] for row in rows] == [fact["name"] for fact in facts] == list(registry.MODELS)
        for row, fact in zip(rows, facts, strict=True):
            assert f"{fact['bitrate'] / 1000:.2f}" in row
            assert fact["licence"] in row

    def test_models_and_doctor_try_programs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

        def said(verb: str, code: int = 0) -> str:
            assert main([verb]) == code
            lines = capsys.readouterr().out.splitlines()
            return next(line for line in lines if "codec2-1300 " in line)

        assert said("models").endswith("after apt-get install codec2")
        assert "Codec2 needs the program c2enc" in said("doctor")
        for name in ("c2enc", "c2dec"):
            (tmp_path / name).touch(mode=0o755)
        assert said("models").endswith("yes")
        assert said("doctor", code=1).split()[0] == "!"  # they are there, and do not run


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


class TestDemo:
    @pytest.mark.parametrize("sample", ["english", "mandarin"])
    def test_writes_everything_and_says_where(
        self, sample: str, tmp_path: Path, codec_folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "demo"
        assert main(["demo", "--out", str(out), "-m", codec_folder, "--sample", sample]) == 0
        text = capsys.readouterr().out
        for name in (f"{sample}.original.wav", f"{sample}.vok", f"{sample}.wav", f"{sample}.png"):
            assert (out / name).stat().st_size > 0
            assert str(out / name) in text
        tokens = Tokens.load(out / f"{sample}.vok")
        for k in range(CODEBOOKS):
            line = next(line for line in text.splitlines() if line.startswith(f"codebook {k + 1}"))
            assert [int(word) for word in line.split()[2:-1]] == tokens.codes[0, k, :12].tolist()
        assert 4.0 < float(tokens.duration[0]) < 6.0

    def test_without_matplotlib_all_but_the_picture(
        self,
        tmp_path: Path,
        codec_folder: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert main(["demo", "--out", str(tmp_path / "demo"), "-m", codec_folder]) == 0
        assert install_line("plot") in capsys.readouterr().out
        assert (tmp_path / "demo/english.wav").exists()


_PEAKS = """
import resource, sys, vokens
codec = vokens.load(sys.argv[1])
for path in sys.argv[2:]:
    tokens = codec.encode(path)
    vokens.audio.save(path + ".flac", codec.decode_spans(tokens), codec.sample_rate)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow  # 15 minutes of speech, in a process of its own
def test_memory_does_not_grow_with_a_recording(codec_folder: str, tmp_path: Path) -> None:
    """Nine minutes more would be 35 MB as they are read, and 35 MB as they are written."""
    minute = sound(60)
    for minutes in (3, 12):
        soundfile.write(tmp_path / f"{minutes}.wav", np.tile(minute, minutes), RATE)
    words = [sys.executable, "-c", _PEAKS, codec_folder, str(tmp_path / "3.wav"), str(tmp_path / "12.wav")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    short, long = (int(line) // 1024 for line in run.stdout.split())
    assert long - short < 25


def test_a_long_file_is_encoded_and_decoded_in_spans(
    codec_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes and the sound of the whole; a file that turns out damaged leaves nothing behind."""
    monkeypatch.setattr("vokens.audio.recording.WHOLE_SECONDS", 2)
    monkeypatch.setattr("vokens.models.codec.SPAN_FRAMES", 70)
    path = write_sound(tmp_path / "a.flac", 9, rate=44100)
    codec = vokens.load(codec_folder)
    assert main(["encode", str(path), "-m", codec_folder]) == 0
    tokens = Tokens.load(tmp_path / "a.vok")
    monkeypatch.undo()
    wave = vokens.audio.load(path, RATE)[0]
    whole = codec.encode(wave, RATE)
    assert torch.equal(tokens.codes, whole.codes)
    assert int(tokens.num_samples) == len(wave)
    monkeypatch.setattr("vokens.audio.recording.WHOLE_SECONDS", 2)
    monkeypatch.setattr("vokens.models.codec.SPAN_FRAMES", 70)
    assert main(["decode", str(tmp_path / "a.vok"), "-m", codec_folder, "-o", str(tmp_path / "b.wav")]) == 0
    decoded = vokens.audio.load(tmp_path / "b.wav")[0]
    monkeypatch.setattr("vokens.models.codec.SPAN_FRAMES", 10**6)
    expected = codec.decode(whole)[0]
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected.clip(-1, 1)).max() < 1e-4
    wave[-1] = np.nan  # beyond what is read at once
    soundfile.write(tmp_path / "nan.wav", wave, RATE, subtype="FLOAT")
    assert main(["encode", str(tmp_path / "nan.wav"), "-m", codec_folder]) == 2
    assert not (tmp_path / "nan.vok").exists()
