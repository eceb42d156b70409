"""A few of the kills that `./dev fuzz kills` makes by the thousand."""

import json
import subprocess
import sys
from pathlib import Path


def test_killed_commands_end_as_undisturbed_ones():
    command = [sys.executable, "-m", "tests.fuzz.kills", "4", "1", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    report = json.loads(done.stdout or "{}")
    assert report.get("defects") == 0, done.stdout + done.stderr
    assert report["kills"] == 4
