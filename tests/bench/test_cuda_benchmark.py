"""The script for a machine with a GPU runs through on the CPU, and a section that breaks takes nothing else along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/cuda.py"


@pytest.fixture
def run(tmp_path: Path):
    """The script's exit code and what it wrote; the lines of `patch` run in it first."""

    def call(*arguments: str, patch: str = "") -> tuple[int, dict, str]:
        code = f"import runpy, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.argv[0] = 'cuda.py'\n"
        code += f"names = runpy.run_path({str(SCRIPT)!r})\n{patch}\nsys.exit(names['main']())"
        script = ["-c", code] if patch else [str(SCRIPT)]
        command = [sys.executable, *script, "--dry", "--out", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (tmp_path / "cuda.json").exists(), done.stderr
        found = json.loads((tmp_path / "cuda.json").read_text())
        return done.returncode, found, (tmp_path / "cuda.md").read_text()

    return call


def test_every_section_gives_rows(run) -> None:
    code, found, table = run()
    assert code == 0, table
    sections = {row["section"] for row in found["rows"]}
    from vokens.train.config import TASKS

    assert {f"train {task}" for task in TASKS} < sections
    assert {"facts", "flac", "s3tokenizer", "s3gen", "mini", "speechtokenizer"} < sections
    assert {row["precision"] for row in found["rows"]} == {"float32", "tf32", "bfloat16"}
    exact = [row["changed"] for row in found["rows"] if row["precision"] == "float32" and row.get("changed")]
    assert exact
    assert all(text.startswith("0 of") or float(text) < 1e-5 for text in exact)
    assert table.count("\n") == len(found["rows"]) + 2
    assert found["facts"]["processor"]["name"]


def test_sections_that_fail_or_hang_leave_a_line_and_the_others_go_on(run) -> None:
    patch = (
        "def broken(bench): bench.row('before'); raise ValueError('a | b')\n"
        "def hangs(bench): import time; time.sleep(60)\n"
        "def dies(bench): import os; os._exit(7)\n"
        "names['SECTIONS'].update({'s3gen': (9, broken), 'mini': (0.25, hangs), 'flac': (9, dies)})"
    )
    code, found, table = run("--sections", "flac", "s3gen", "mini", "facts", patch=patch)
    assert code == 1
    said = [(row["section"], row["case"], row.get("note")) for row in found["rows"]]
    assert said[3:] == [
        ("flac", "failed", "the process ended with 7"),
        ("s3gen", "before", None),
        ("s3gen", "failed", "ValueError: a | b"),
        ("mini", "stopped", "after 1 s"),
    ]
    assert [row[0] for row in said[:3]] == ["facts"] * 3
    assert "a / b" in table
