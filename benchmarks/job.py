"""Benchmark of a complete training job, 345M from random weights: seconds to the first step and the end, GPU use.

    python -m benchmarks.job --out FOLDER --train SQUAD.json --validation SQUAD.json --vocabulary VOCAB.txt [--where]
    python -m benchmarks.job ... --devices 2 [--set parallel.fsdp=2]

Runs `megabert train question_answering` three times: to write Python's bytecode (`bytecode`), with an empty compile
cache (`cold`) and with a full one (`warm`). Utilization is nvidia-smi's mean from the first step to the end. --where
also samples what the main thread executes. Several processes, one for each GPU, are started as torchrun would; the
values are those of rank zero.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from megabert.parallel.launch import environments

NETWORK = "{hidden_size: 1024, num_layers: 24, num_attention_heads: 16, max_position_embeddings: 512}"
PAUSE = 0.01


def command_line(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Build the arguments of the command."""
    return [
        "train",
        "question_answering",
        f"model.train_ds.file={arguments.train}",
        f"model.validation_ds.file={arguments.validation}",
        f"model.tokenizer.vocab_file={arguments.vocabulary}",
        "model.language_model.pretrained_model_name=null",
        f"model.language_model.config={NETWORK}",
        "model.train_ds.batch_size=32",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.precision={arguments.precision}",
        "trainer.gradient_clip_val=1.0",
        "trainer.enable_progress_bar=false",
        f"exp_manager.explicit_log_dir={folder}",
        f"trainer.devices={arguments.devices}",
        *arguments.set,
    ]


def child(words: list[str], report: Path) -> None:
    """Run the command; write the times of the first and last step, and the sampled locations, to the report."""
    began = float(os.environ["BEGAN"])
    steps: list[float] = []
    before_first: defaultdict[str, float] = defaultdict(float)
    after_first: defaultdict[str, float] = defaultdict(float)
    main_thread = threading.get_ident()

    def watch() -> None:
        """Sample the main thread; patch the steppers as soon as their module is imported."""
        is_patched = False
        last = time.time()
        while True:
            time.sleep(PAUSE)
            module = sys.modules.get("megabert.training.step")
            if not is_patched and hasattr(module, "SyncFreeStepper"):
                record_steps(module, steps)
                is_patched = True
            if "WHERE" in os.environ:
                now = time.time()  # a thread that holds the interpreter lock makes the pause longer
                seconds = after_first if steps else before_first
                seconds[_location_of_training(main_thread)] += now - last
                last = now

    threading.Thread(target=watch, daemon=True).start()
    from megabert.cli import main

    code = main(words)
    if code:
        raise SystemExit(code)
    metrics = {
        "first": steps[0] - began,
        "last": steps[-1] - began,
        "end": time.time() - began,
        "num_steps": len(steps),
    }
    if os.environ.get("RANK", "0") == "0":
        report.write_text(json.dumps(metrics | {"before_first": top(before_first), "after_first": top(after_first)}))
    raise SystemExit(0)


def top(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Return the locations with the most time."""
    return sorted(seconds.items(), key=lambda item: -item[1])[:25]


def record_steps(module: Any, steps: list[float]) -> None:
    """Record when each step's call returns; the first waits for the device."""
    for kind in (module.Stepper, module.SyncFreeStepper):
        kind.step = _recording(kind.step, steps)


def _recording(original: Callable[..., Any], steps: list[float]) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not steps:
            result.tolist()
        steps.append(time.time())
        return result

    return step


def _location_of_training(main_thread: int) -> str:
    """Name what the main thread executes, or in a backward pass the thread of autograd that it waits for."""
    frames = sys._current_frames()
    started_here = {thread.ident for thread in threading.enumerate()}
    of_autograd = [frame for ident, frame in frames.items() if ident not in started_here]
    where = location(frames[main_thread])
    return f"{where}: {location(of_autograd[0])}" if of_autograd and "_differentiate" in where else where


def location(frame: FrameType | None) -> str:
    """Name what a frame executes: the package that it imports, or megabert's innermost function."""
    importing, function, inner = "", "", ""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if name == "_find_and_load":
            importing = ".".join(str(frame.f_locals.get("name")).split(".")[:2])
        elif "megabert" in file and not function:
            function = f"{Path(file).stem}.{name}"
        elif "torch/_" in file and not function:
            inner = "/".join(Path(file).parts[-2:]) + f":{name}"
        frame = frame.f_back
    return f"import {importing} in {function}" if importing else f"{function} {inner}"


def run(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run the command in one or several new processes."""
    folder, report = arguments.out / name, arguments.out / f"{name}.json"
    shutil.rmtree(folder, ignore_errors=True)
    if name == "cold":
        shutil.rmtree(arguments.out / "cache", ignore_errors=True)
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "home"}
    common = {key: str(arguments.out / "cache" / value) for key, value in caches.items()}
    if arguments.where:
        common["WHERE"] = "1"
    nvidia_smi = subprocess.Popen(
        ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    utilization: list[tuple[float, float]] = []
    assert nvidia_smi.stdout is not None
    lines = nvidia_smi.stdout
    samples = ((time.time(), float(line)) for line in lines)
    threading.Thread(target=lambda: utilization.extend(samples), daemon=True).start()
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.job", "--child", str(report), *command_line(arguments, folder)]
    common["BEGAN"] = str(began)
    processes = environments(arguments.devices) if arguments.devices > 1 else [dict(os.environ)]
    children = [subprocess.Popen(command, env=environment | common) for environment in processes]
    codes = [child.wait() for child in children]
    nvidia_smi.terminate()
    if any(codes):
        raise SystemExit(f"{name}: the processes ended with {codes}.")
    metrics: dict[str, Any] = json.loads(report.read_text())
    shares = [share for at, share in utilization if metrics["first"] <= at - began <= metrics["end"]]
    metrics["busy"] = sum(shares) / max(len(shares), 1)
    shutil.rmtree(folder / "checkpoints")
    return metrics


def main() -> None:
    """Run the jobs and print the measurements."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[3:], Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "train", "validation", "vocabulary"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=-1, help="optimizer steps; -1: three epochs")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, one process each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; can be repeated")
    parser.add_argument("--runs", default="bytecode,cold,warm", help="one run for each name; cold empties the caches")
    parser.add_argument("--where", action="store_true", help="sample what the main thread executes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.runs.split(","):
        metrics = run(arguments, name)
        print(
            f"{name}: first step {metrics['first']:.1f} s, last of {metrics['num_steps']} {metrics['last']:.1f} s, "
            f"end {metrics['end']:.1f} s, GPU busy {metrics['busy']:.0f} % from the first step to the end",
            flush=True,
        )
        for title, key in (("before the first step", "before_first"), ("after it", "after_first")):
            for where, seconds in metrics[key] if arguments.where else []:
                print(f"  {title}: {seconds:6.2f} s  {where}", flush=True)


if __name__ == "__main__":
    main()
