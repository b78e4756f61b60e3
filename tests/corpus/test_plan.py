"""Shards of a source: keys that differ, and lists of ten million lines in little time and memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from vokens.corpus.plan import plan_shards
from vokens.data.items import Span
from vokens.errors import ConfigError


class Same(str):
    """A key whose 64 bits are those of all its kind."""

    def __hash__(self) -> int:
        return 7

    __slots__ = ()


class Keys:
    """A source of nothing but keys."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def plan(self, size: int) -> Iterator[tuple[Span, list[str]]]:
        for low in range(0, len(self.keys), size):
            keys = self.keys[low : low + size]
            yield Span("here", low, len(keys)), keys

    def read(self, span: Span):
        raise AssertionError("planning reads nothing")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.integers(1, 9), st.booleans())
def test_spans_are_those_of_the_source_and_keys_differ(keys, size, collide):
    source = Keys([Same(key) for key in keys] if collide else keys)
    if len(set(map(str.__str__, keys))) == len(keys):
        assert list(plan_shards(source, size)) == [span for span, _ in source.plan(size)]
    else:
        refused(ConfigError, "names two utterances", lambda: list(plan_shards(source, size)))


def test_errors_name_the_key_and_its_places():
    twice = "key 'b' names two utterances: one in here among the 2 from position 0"
    refused(ConfigError, twice, lambda: list(plan_shards(Keys(list("abcdb")), 2)))
    refused(
        ConfigError, "from position 2 has an empty", lambda: list(plan_shards(Keys(["a", "b", "c", ""]), 2))
    )
    refused(ConfigError, "has no utterances", lambda: list(plan_shards(Keys([]), 2)))
    refused(ConfigError, "1 utterance or more, got 0", lambda: list(plan_shards(Keys(["a"]), 0)))


MEASURE = """
import sys, time
from pathlib import Path
from vokens.corpus.plan import plan_shards
from vokens.data.sources import open_source
before = time.process_time()
source = open_source(sys.argv[1], listing=Path(sys.argv[1]).parent / "run")
count = sum(span.count for span in plan_shards(source, 1000))
seconds = time.process_time() - before
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(count, seconds, 1024 * int(peak))
"""


def jsonl(i: int) -> str:
    path = f"spk{i % 977:04d}/ch{i % 83:03d}/utt{i:08d}"
    line = {"id": path, "path": f"audio/{path}.flac", "text": "the quick brown fox jumps over the lazy dog"}
    return json.dumps(line | {"speaker": f"spk{i % 977:04d}", "language": "en", "duration": i % 1300 / 100})


def scp(i: int) -> str:
    return f"spk{i % 977:04d}-utt{i:08d} /data/my corpus/spk{i % 977:04d}/ch{i % 83:03d}/utt{i:08d}.flac"


def paths(i: int) -> str:
    return scp(i).partition(" ")[2]


LISTS = [("m.jsonl", jsonl), ("wav.scp", scp), ("files.txt", paths)]
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory")


def planned(path: Path, line, count: int) -> tuple[float, int]:
    """Seconds of CPU, and bytes of memory, of a fresh process that plans a list of so many lines."""
    with path.open("w") as out:
        out.writelines(f"{line(i)}\n" for i in range(count))
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    actual, seconds, memory = done.stdout.split()
    assert int(actual) == count
    path.unlink()
    return float(seconds), int(memory)


@needs_proc
@pytest.mark.parametrize(("name", "line"), LISTS[:2])
def test_planning_is_quick_and_small(tmp_path, name, line):
    seconds, memory = planned(tmp_path / name, line, 200_000)
    assert seconds < 200_000 * 6e-6 * 2  # 60 s for ten million; twice that where others use the caches too
    assert memory < 150e6  # most of it Python and numpy


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("name", "line"), LISTS)
def test_ten_million_lines_under_a_minute_and_2_gb(tmp_path, name, line):
    seconds, memory = planned(tmp_path / name, line, 10_000_000)
    print(f"{name}: {seconds:.1f} s of CPU, {memory / 1e6:.0f} MB")
    assert seconds < 60
    assert memory < 2e9
