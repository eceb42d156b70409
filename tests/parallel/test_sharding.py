import subprocess
import sys

SCRIPT = """
import sys, threading, torch
from megabert.parallel.sharding import warm_up
before = set(sys.modules)
warm_up(torch.device("cpu"))
[thread.join() for thread in threading.enumerate() if thread.name == "warm-up"]
print(sorted(set(sys.modules) - before))
"""


def test_the_warm_up_thread_imports_nothing():
    # Two threads that import PyTorch's compiler at the same time leave it partially imported.
    result = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
