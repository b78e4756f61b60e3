"""The job files of docs/jobs/scale.md say what the command line accepts, and parse."""

import shlex
from pathlib import Path

import pytest
import tyro
import yaml

from vokens.cli.extract import Arguments

FOLDER = Path(__file__).parents[2] / "examples/cluster"


def script(name: str) -> str:
    """What the shell of a worker runs."""
    text = (FOLDER / name).read_text()
    if name == "slurm.sh":
        return text
    job = yaml.safe_load(text)
    return job["run"] if name == "skypilot.yaml" else container(job)["args"][0]


def container(job: dict) -> dict:
    return job["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", ["slurm.sh", "skypilot.yaml", "kubernetes.yaml"])
def test_the_command_is_one_that_vokens_takes(name):
    joined = script(name).replace("\\\n", " ")
    [line] = [line for line in joined.splitlines() if "exec vokens extract" in line]
    options = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    words = shlex.split(line.split("vokens extract", 1)[1])
    arguments = tyro.cli(Arguments, args=words, config=options)
    assert arguments.format == "parquet"
    assert arguments.compute.device == "cuda"
