"""Folders and text files as strangers have them: links, loops, locked folders, byte order marks, other encodings."""

import glob
import os
from pathlib import Path

import pytest
from conftest import refused

from vokens.audio_files import find_files, match_files, walk
from vokens.errors import ConfigError
from vokens.text.files import iter_lines, read_json, read_list, read_stdin, read_text


def names(top: Path) -> list[str]:
    return [path.relative_to(top).as_posix() for path in find_files(top)]


class TestWalk:
    def test_links_are_followed_and_loops_end(self, tmp_path: Path) -> None:
        """A linked folder is looked into, and one that links to a folder above it is visited once."""
        far, top = tmp_path / "far", tmp_path / "top"
        far.mkdir(), top.mkdir()
        (far / "b.wav").touch()
        (top / "a.WAV").touch()
        (top / "linked").symlink_to(far)
        (far / "up").symlink_to(top)
        assert names(top) == ["a.WAV", "linked/b.wav"]

    def test_hidden_and_other_files_are_left_out(self, tmp_path: Path) -> None:
        (tmp_path / ".cache").mkdir()
        (tmp_path / "folder.wav").mkdir()
        for name in (".cache/a.wav", "._b.wav", "b.wav", "c.txt", "folder.wav/d.flac"):
            (tmp_path / name).touch()
        assert names(tmp_path) == ["b.wav", "folder.wav/d.flac"]

    def test_a_link_that_leads_nowhere_is_a_file(self, tmp_path: Path) -> None:
        """Opening it fails later, by name: it is not left out without a word."""
        (tmp_path / "a.wav").symlink_to(tmp_path / "gone.wav")
        assert names(tmp_path) == ["a.wav"]

    def test_folder_that_cannot_be_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match=r"gone cannot be listed \(No such file or directory\)"):
            list(walk(tmp_path / "gone"))
        (tmp_path / "locked").mkdir()
        scan = os.scandir

        # Root may list everything, so permissions alone would prove nothing.
        def scandir(path: str) -> object:
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        refused(ConfigError, r"locked cannot be listed \(Permission denied\): allow", find_files, tmp_path)


class TestMatch:
    def test_as_glob_does(self, tmp_path: Path) -> None:
        for name in ("a.wav", "b.txt", "x/a.wav", "x/y/c.wav", ".h/a.wav", "x/.b.wav"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        for pattern in ("*.wav", "*/*.wav", "**/*.wav", "x/**", "?/y/*", "[a-w]*", "**/y/*.wav"):
            found = glob.glob(f"{tmp_path}/{pattern}", recursive=True)
            expected = [name for name in found if Path(name).is_file()]
            assert match_files(f"{tmp_path}/{pattern}") == sorted(expected)

    def test_only_folders_that_may_match_are_looked_into(self, tmp_path: Path) -> None:
        entered = []
        scan = os.scandir
        for name in ("x/deep/er", "y"):
            (tmp_path / name).mkdir(parents=True)

        def scandir(path: str) -> object:
            entered.append(Path(path).name)
            return scan(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            match_files(f"{tmp_path}/x/*.wav")
            match_files(f"{tmp_path}/[x]/*.wav")
        assert entered == ["x", tmp_path.name, "x"]


class TestText:
    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        file = tmp_path / "list.txt"
        file.write_bytes(b"\xef\xbb\xbfa.wav\r\n\r\n# a comment\r\n  b.wav ")
        assert list(iter_lines(file)) == ["a.wav", "", "# a comment", "  b.wav "]
        assert read_text(file) == "a.wav\n\n# a comment\n  b.wav "
        assert read_list(file) == ["a.wav", "b.wav"]

    def test_only_ends_of_lines_end_a_line(self, tmp_path: Path) -> None:
        """U+2028 within a text is a character of it, as in JSON."""
        file = tmp_path / "text"
        file.write_text("one\u2028two\x0cthree\n")
        assert list(iter_lines(file)) == ["one\u2028two\x0cthree"]

    def test_other_encodings_are_named_with_their_place(self, tmp_path: Path) -> None:
        file = tmp_path / "text"
        file.write_bytes("first\nund caf\u00e9\n".encode("latin1"))
        for read in (read_text, read_list):
            refused(ConfigError, r"text, line 2, byte 8: 0xe9 is not UTF-8; save it as UTF-8", read, file)
        file.write_bytes("first".encode("utf-16"))
        refused(ConfigError, "is UTF-16: save it as UTF-8", read_text, file)

    def test_absent_files_and_damaged_json(self, tmp_path: Path) -> None:
        refused(ConfigError, "gone cannot be read: No such file", read_text, tmp_path / "gone")
        file = tmp_path / "a.json"
        file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert read_json(file) == {"a": 1}
        file.write_text('{"a": 1,\n "b" 2}')
        refused(ConfigError, r"a\.json, line 2, column 6: not JSON", read_json, file)

    def test_standard_input_is_read_alike(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "input"
        for content, text in ((b"\xef\xbb\xbfHello.\r\n", "Hello.\n"), (b"caf\xe9", None)):
            file.write_bytes(content)
            with file.open() as stream:
                monkeypatch.setattr("sys.stdin", stream)
                if text is not None:
                    assert read_stdin() == text
                else:
                    refused(ConfigError, "standard input, line 1, byte 4: 0xe9 is not UTF-8", read_stdin)
