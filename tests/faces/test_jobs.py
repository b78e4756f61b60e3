"""Inputs and outputs of the verbs are paired before any work, and codebooks are counted from one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refused

from vokens.cli.jobs import Job, Source, find_sources, plan
from vokens.cli.options import codebook_range
from vokens.errors import ConfigError

FILES = ("in/a.wav", "in/sub/b.flac", "in/sub/c.wav", "in/notes.txt", "in/._a.wav")


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def corpus(tmp_path):
    """Three recordings in two folders, and two files that are no audio."""
    touch(*(tmp_path / name for name in FILES))
    return tmp_path


def planned(inputs, output, format=None):
    """The jobs of a verb's arguments."""
    output = None if output is None else str(output)
    arguments = SimpleNamespace(inputs=[*map(str, inputs)], output=output, format=format, overwrite=False)
    return plan(arguments, (".wav", ".flac"), (".vok", ".json"))


def targets(inputs, output, below, format=None):
    """The outputs of a plan, by their paths below a folder."""
    return [job.target.relative_to(below).as_posix() for job in planned(inputs, output, format)]


def test_linked_folders_and_loops(tmp_path):
    touch(tmp_path / "c/sub/x", tmp_path / "far/b.wav")
    (tmp_path / "c/sub/linked").symlink_to(tmp_path / "far")
    (tmp_path / "far/up").symlink_to(tmp_path / "c")
    for spec in ("c", "c/**/*.wav"):
        assert targets([f"{tmp_path}/{spec}"], None, tmp_path) == ["c/sub/linked/b.vok"]


def test_names_that_differ_in_their_suffix_keep_it(tmp_path):
    """As `vokens extract` names them; inputs of two folders are told apart by their folders alone."""
    folder = tmp_path / "c"
    touch(*(folder / name for name in ("a.wav", "a.flac", "b.wav", "d/a.wav")))
    for output in (None, folder):
        assert targets([folder], output, folder) == ["a.flac.vok", "a.wav.vok", "b.vok", "d/a.vok"]
    assert targets([folder / "a.wav", folder / "d/a.wav"], None, folder) == ["a.vok", "d/a.vok"]


def test_folder_keeps_its_structure_and_counts_the_rest(corpus, capsys):
    assert targets([corpus / "in"], corpus / "out", corpus / "out") == ["a.vok", "sub/b.vok", "sub/c.vok"]
    assert "left out 2 files" in capsys.readouterr().err


def test_glob_keeps_the_structure_below_its_fixed_part(corpus, capsys):
    assert targets([corpus / "in/**/*.wav"], corpus / "out", corpus / "out") == ["a.vok", "sub/c.vok"]
    assert len(find_sources([str(corpus / "in/[as]*")], ())) == 1
    assert "left out 1 folders" in capsys.readouterr().err


def test_a_file_with_glob_characters_is_a_file(tmp_path):
    odd = tmp_path / "take [1].wav"
    touch(odd)
    assert find_sources([str(odd)], ()) == [Source(odd, Path(odd.name))]


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        (None, None, "in/a.vok"),
        ("x.json", None, "x.json"),
        ("new", None, "new/a.vok"),
        ("v1.0/", None, "v1.0/a.vok"),
        (None, "json", "in/a.json"),
    ],
)
def test_one_file_goes_beside_itself_or_where_told(corpus, output, format, expected):
    output = output and f"{corpus}/{output}"
    assert targets([corpus / "in/a.wav"], output, corpus, format) == [expected]


def test_standard_output_and_input(corpus):
    assert planned([corpus / "in/a.wav"], "-")[0].target is None
    assert planned(["-"], None) == [Job(Source(None, Path("stdin")), None, ".vok")]


def test_the_same_file_twice_is_one_job(corpus):
    assert targets([corpus / "in/a.wav"] * 2, corpus / "out", corpus) == ["out/a.vok"]


@pytest.mark.parametrize(
    ("inputs", "output", "format", "message"),
    [
        ([], None, None, "no input"),
        (["-", "-"], "x.vok", None, "twice"),
        (["in/a.wav", "in/sub/c.wav"], "x.vok", None, "2 inputs cannot become one file"),
        (["in"], "-", None, "3 inputs cannot share standard output"),
        (["in/a.wav"], "x.aiff", None, "use .vok, .json"),
        (["in/a.wav"], "README", None, "README has no suffix"),
        (["in/a.wav"], "x.vok", "json", "disagree"),
        (["in/nothing*"], None, None, "no file matches"),
        (["empty"], None, None, "no file below empty"),
        (["in/a.wav", "more/a.wav"], "out/", None, r"in/a\.wav and more/a\.wav would both become"),
    ],
)
def test_what_cannot_be_paired_is_refused(inputs, output, format, message, corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    (corpus / "empty").mkdir()
    touch(corpus / "README", corpus / "more/a.wav")
    refused(ConfigError, message, planned, inputs, output, format)


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
def test_codebooks_are_counted_from_one(text, first, count, expected):
    assert codebook_range(text, first, count) == expected


@pytest.mark.parametrize("text", ["0", "9", "3-2", "1-9", "one", "-1", "1,2", ""])
def test_other_codebooks_are_refused_with_those_present(text):
    refused(ConfigError, "1-8", codebook_range, text, 0, 8)
    refused(ConfigError, "2-8", codebook_range, "1", 1, 7)  # in layers two to eight the first is not present
