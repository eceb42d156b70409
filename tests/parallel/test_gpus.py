"""Training on several GPUs matches one: NCCL, collectives in CUDA graphs, FSDP. Skipped with fewer than two."""

import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
LAYOUTS = "data2", "fsdp2", "fsdp2xeager", "fsdp2xreshard", "tensor2", "tensor2xsequence", "tensor2xsequencexrecompute"


def test_fifty_losses_of_each_layout_match_one_gpu(tmp_path):
    words = ["--out", str(tmp_path), "--check", "--layouts", ",".join(("1", *LAYOUTS))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert [row["case"]["layout"] for row in rows] == ["1", *LAYOUTS]
    assert all(len(row["losses"]) == 50 for row in rows)
