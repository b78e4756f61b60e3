"""Worker processes of measurements end with the command that started them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import os, signal, time
from vokens.bench.tasks.processes import pool

if __name__ == "__main__":
    with pool(1) as executor:
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 600)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_parent_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(number)
    process.communicate(timeout=60)  # ends when nobody holds the pipe: neither the command nor its worker
    assert process.returncode == -number
