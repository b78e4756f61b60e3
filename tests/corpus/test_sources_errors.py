"""What is no source, or a damaged one, is refused with its place; audio is fetched from wherever it is."""

import gzip
import http.server
import json
import threading
from functools import partial
from pathlib import Path

import pytest
from conftest import refused
from corpora import write_table, write_tar

from vokens.data.fetch import open_audio
from vokens.data.items import Utterance
from vokens.data.sources import SourceOptions, open_source
from vokens.data.sources.records import read_manifest
from vokens.errors import AudioError, ConfigError

FILE = {"type": "file", "channels": [0], "source": "a.wav"}
CUT = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "type": "MonoCut"}
CUT |= {"recording": {"duration": 1.0, "sources": [FILE]}}


def recorded(**changes) -> str:
    return json.dumps(CUT | {"recording": CUT["recording"] | changes})


def plan(spec: Path | str, tmp_path: Path, **options) -> list[str]:
    source = open_source(str(spec), listing=tmp_path / "run", options=SourceOptions(**options))
    return [key for _, keys in source.plan(2) for key in keys]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "b", "path": "b.wav"', "not JSON"),
        ('{"id": "b", "path": "b.wav"} {}', "one object per line"),
        ('["b.wav"]', "one object per line"),
        ("b.wav", "not JSON"),
        ("\xff", "byte 1: 0xff is not UTF-8"),
        ('{"id": "b", "audio": "b.wav"}', "neither path, audio_filepath nor recording"),
        ('{"id": "b", "path": 7}', "has to be a string"),
        ('{"audio_filepath": "b.wav", "offset": "1"}', "start and duration in seconds"),
        (recorded(sources=[{"type": "command", "channels": [0], "source": "cat x"}]), "never executed"),
        (recorded(sources=[{"type": "file", "channels": [0, 1], "source": "a.wav"}]), "would be averaged"),
        (recorded(sources=[]), "0 sources"),
        ('{"path": "b.wav", "channel_selector": [0, 1]}', r"channel \[0, 1\]: give the number of one"),
        ('{"path": "b.wav", "speed": 0.9}', "'speed' is 0.9, which changes the audio"),
        (recorded(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), "Speed"),
        ('{"id": "m", "type": "MixedCut", "tracks": []}', "mixed or padding cut"),
    ],
)
def test_bad_lines_are_named_when_planned(tmp_path, line, says):
    (tmp_path / "m.jsonl").write_bytes(f'{{"id": "a", "path": "a.wav"}}\n\n{line}\n'.encode("latin-1"))
    refused(ConfigError, rf"m\.jsonl, line 3(: .*|, ){says}", plan, tmp_path / "m.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("b", "has no path"),
        ("b sox in.mp3 -t wav - |", "never executed: run it once"),
        ("b wavs.1.ark:1234", "Kaldi archive"),
    ],
)
def test_bad_lines_of_wav_scp(tmp_path, line, says):
    (tmp_path / "wav.scp").write_text(f"a a.wav\n{line}\n")
    refused(ConfigError, rf"wav\.scp, line 2: .*{says}", plan, tmp_path / "wav.scp", tmp_path)
    (tmp_path / "text").write_text("a eins\n")
    refused(ConfigError, says, plan, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [("u2 r9 0 1", "'r9' is not in"), ("u2 r1 0", "is not an utterance"), ("u2 r1 2 1", "is no segment")],
)
def test_bad_segments(tmp_path, line, says):
    (tmp_path / "wav.scp").write_text("r1 a.wav\n")
    (tmp_path / "segments").write_text(f"u1 r1 0 1\n{line}\n")
    refused(ConfigError, rf"segments, line 2: .*{says}", plan, tmp_path, tmp_path)
    assert not list((tmp_path / "run").iterdir())  # half a list is not kept


def test_what_is_no_source(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    for spec in ("x.bin", "none.jsonl", "none"):
        with pytest.raises(ConfigError, match=r"a source is a folder of audio or a glob, wav\.scp"):
            plan(tmp_path / spec, tmp_path)
    refused(ConfigError, "matches no file", plan, tmp_path / "*.tar", tmp_path)
    refused(ConfigError, "nosuch", plan, "nosuch://b/c.jsonl", tmp_path)
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav"}')
    refused(ConfigError, "no field 'name' for the key", plan, tmp_path / "m.jsonl", tmp_path, key="name")
    (tmp_path / "shar").mkdir()
    (tmp_path / "shar" / "cuts.000000.jsonl.gz").touch()
    refused(ConfigError, r"no recording\.000000\.tar", plan, tmp_path / "shar", tmp_path)


def test_damaged_containers(tmp_path):
    write_tar(tmp_path / "w.tar", dict.fromkeys(("a.wav", "b.wav"), bytes(5000)))
    write_table(tmp_path / "p.parquet", {"wav": [b"1"] * 100, "id": list("abcde" * 20)})
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b'{"path": "a.wav"}\n' * 100))
    for name, cut in (("w.tar", 8000), ("p.parquet", 200), ("m.jsonl.gz", 40)):
        whole = (tmp_path / name).read_bytes()
        assert plan(tmp_path / name, tmp_path)
        (tmp_path / f"cut-{name}").write_bytes(whole[:cut])
        refused(ConfigError, f"cut-{name} is not a complete", plan, tmp_path / f"cut-{name}", tmp_path)
    cut = read_manifest(tmp_path / "cut-m.jsonl.gz")
    refused(ConfigError, r"cut-m.*line \d+: Compressed file ended", list, cut)
    write_tar(tmp_path / "n.tar", {"a.txt": b"hello"})
    refused(ConfigError, "'a' has no audio", plan, tmp_path / "n.tar", tmp_path)


@pytest.mark.parametrize("name", ["m.jsonl", "m.tar", "m.parquet"])
def test_a_source_that_got_shorter(name, tmp_path):
    def write(names: str) -> None:
        if name == "m.tar":
            write_tar(tmp_path / name, {f"{one}.wav": b"w" for one in names})
        elif name == "m.parquet":
            write_table(tmp_path / name, {"wav": [b"w"] * len(names), "id": list(names)})
        else:
            (tmp_path / name).write_text("".join(f'{{"path": "{one}.wav"}}\n' for one in names))

    write("abc")
    source = open_source(str(tmp_path / name), listing=tmp_path)
    [(span, _)] = source.plan(9)
    write("a")
    refused(ConfigError, f"{name} is 2 utterances shorter than when planned", lambda: list(source.read(span)))


def test_a_local_path_is_not_touched():
    assert open_audio(Utterance("k", "/no such.wav")) == Path("/no such.wav")
    assert open_audio(Utterance("k", b"RIFF")) == b"RIFF"


def test_an_object_store(tmp_path):
    """fsspec's memory store: lists, patterns, folders and audio."""
    import fsspec

    content = {f"in/{name}.wav": name.encode() for name in ("a", "b c")}
    content["m.jsonl"] = b'{"path": "in/a.wav"}\n{"path": "in/b c.wav"}\n{"path": "in/gone.wav"}\n'
    content["w-0.tar"] = Path(write_tar(tmp_path / "w.tar", {"a.wav": b"a"})).read_bytes()
    fsspec.filesystem("memory").pipe({f"/store/{name}": value for name, value in content.items()})
    for number, spec in enumerate(("m.jsonl", "in", "in/*.wav", "w-{0..0}.tar")):
        source = open_source(f"memory://store/{spec}", listing=tmp_path / str(number))
        utterances = [utterance for span, _ in source.plan(9) for utterance in source.read(span)]
        decoded = [open_audio(utterance) for utterance in utterances[:2]]
        assert decoded == ([b"a"] if "tar" in spec else [b"a", b"b c"])
        if spec == "m.jsonl":
            refused(AudioError, r"memory://store/in/gone\.wav cannot be fetched", open_audio, utterances[2])
    refused(ConfigError, "nosuch", lambda: open_audio(Utterance("k", "nosuch://b/a.wav")))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_a_web_server(tmp_path):
    (tmp_path / "a b.wav").write_bytes(b"RIFF")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert open_audio(Utterance("k", f"{url}/a%20b.wav")) == b"RIFF"
        refused(AudioError, "404", lambda: open_audio(Utterance("k", f"{url}/none.wav")))
    finally:
        server.shutdown()
        server.server_close()
    refused(AudioError, "cannot be fetched", lambda: open_audio(Utterance("k", f"{url}/a%20b.wav")))


@pytest.mark.parametrize(
    "line", ["a.wav|hello there", "wavs/a.FLAC|3|hello", "a.wav\\thello", "a.wav, hello"]
)
def test_lists_of_columns_are_refused(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"{line.encode().decode('unicode_escape')}\n")
    words = r"train\.txt, line 1: .* is more than a path.*give a jsonl manifest"
    refused(ConfigError, words, plan, tmp_path / "train.txt", tmp_path)


def test_paths_with_such_signs_are_paths(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav, b.wav\nx|y.wav\n")
    assert plan(tmp_path / "list.txt", tmp_path) == ["a.wav, b", "x|y"]


@pytest.mark.parametrize("name", ["text", "wav.scp"])
def test_two_lines_of_a_key_and_other_encodings(tmp_path, name):
    lines = {"wav.scp": ["r1 a.wav", "r2 b.wav"], "segments": ["u1 r1 0 1"], "text": ["u1 x", "u2 y"]}
    for file, content in lines.items():
        (tmp_path / file).write_text("\n".join(content) + "\n")
    with open(tmp_path / name, "a") as file:
        file.write(f"{lines[name][0]} again\n")
    refused(ConfigError, rf"{name} has two lines of", plan, tmp_path, tmp_path / "run")
    (tmp_path / name).write_bytes(f"{lines[name][0]} é\n".encode("latin1"))
    refused(ConfigError, rf"{name}, line 1", plan, tmp_path, tmp_path / "run")
