"""A whole job by the command, 345M from random weights: seconds to the first step and to the end, how busy the GPU was.

    python -m benchmarks.job --out FOLDER --train SQUAD.json --validation SQUAD.json --vocabulary VOCAB.txt [--where]
    python -m benchmarks.job ... --devices 2 [--set parallel.fsdp=2]

Runs `megabert train question_answering` three times: so that Python's bytecode is there (`bytecode`), with an empty
compile cache (`cold`) and with the full one. Busy is the mean of
nvidia-smi's figure from the first step to the end. --where also samples what the command does until the first step.
Several processes, one a GPU, are started as torchrun would; the figures are the first one's.
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


def words(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Give the command's words."""
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


def child(given: list[str], report: Path) -> None:
    """Run the command; write when the first and the last step were made, and where the time before went."""
    began = float(os.environ["BEGAN"])
    steps: list[float] = []
    places: defaultdict[str, float] = defaultdict(float)
    after: defaultdict[str, float] = defaultdict(float)
    main_thread = threading.get_ident()

    def watch() -> None:
        """Look at the main thread; note the steps as soon as the module that makes them is there."""
        is_noting = False
        before = time.time()
        while True:
            time.sleep(PAUSE)
            module = sys.modules.get("megabert.training.step")
            if not is_noting and hasattr(module, "SyncFreeStepper"):
                note_steps(module, steps)
                is_noting = True
            if "WHERE" in os.environ:
                now = time.time()  # a thread that holds the interpreter makes the pause longer
                (after if steps else places)[place(sys._current_frames()[main_thread])] += now - before
                before = now

    threading.Thread(target=watch, daemon=True).start()
    from megabert.cli import main

    code = main(given)
    if code:
        raise SystemExit(code)
    found = {"first": steps[0] - began, "last": steps[-1] - began, "end": time.time() - began, "num_steps": len(steps)}
    if os.environ.get("RANK", "0") == "0":
        report.write_text(json.dumps(found | {"places": max_seqlen(places), "after": max_seqlen(after)}))
    raise SystemExit(0)


def max_seqlen(places: dict[str, float]) -> list[tuple[str, float]]:
    """Give where most time was spent."""
    return sorted(places.items(), key=lambda item: -item[1])[:25]


def note_steps(module: Any, steps: list[float]) -> None:
    """Note when each step's call returns; the first one waits for the device, to tell when it was made."""
    for kind in (module.Stepper, module.SyncFreeStepper):
        kind.step = _noting(kind.step, steps)


def _noting(original: Callable[..., Any], steps: list[float]) -> Callable[..., Any]:
    def step(self: Any, *values: Any, **more: Any) -> Any:
        found = original(self, *values, **more)
        if not steps:
            found.tolist()
        steps.append(time.time())
        return found

    return step


def place(frame: FrameType | None) -> str:
    """Name what the main thread does: the package that it imports, or megabert's innermost function."""
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
    """Run the command in a process of its own, or several."""
    folder, report = arguments.out / name, arguments.out / f"{name}.json"
    shutil.rmtree(folder, ignore_errors=True)
    if name == "cold":
        shutil.rmtree(arguments.out / "cache", ignore_errors=True)
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "home"}
    common = {key: str(arguments.out / "cache" / value) for key, value in caches.items()}
    if arguments.where:
        common["WHERE"] = "1"
    busy = subprocess.Popen(
        ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    shares: list[tuple[float, float]] = []
    assert busy.stdout is not None
    lines = busy.stdout
    threading.Thread(target=lambda: shares.extend((time.time(), float(line)) for line in lines), daemon=True).start()
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.job", "--child", str(report), *words(arguments, folder)]
    common["BEGAN"] = str(began)
    processes = environments(arguments.devices) if arguments.devices > 1 else [dict(os.environ)]
    children = [subprocess.Popen(command, env=environment | common) for environment in processes]
    codes = [child.wait() for child in children]
    busy.terminate()
    if any(codes):
        raise SystemExit(f"{name}: the processes ended with {codes}.")
    found: dict[str, Any] = json.loads(report.read_text())
    after = [share for at, share in shares if found["first"] <= at - began <= found["end"]]
    found["busy"] = sum(after) / max(len(after), 1)
    shutil.rmtree(folder / "checkpoints")
    return found


def main() -> None:
    """Measure the runs and print them."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[3:], Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "train", "validation", "vocabulary"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=-1, help="optimizer steps; -1: three epochs")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, one process each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; can be repeated")
    parser.add_argument("--runs", default="bytecode,cold,warm", help="a run for each name; cold empties the caches")
    parser.add_argument("--where", action="store_true", help="sample what the command does")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.runs.split(","):
        found = run(arguments, name)
        print(
            f"{name}: first step {found['first']:.1f} s, last of {found['num_steps']} {found['last']:.1f} s, "
            f"end {found['end']:.1f} s, GPU busy {found['busy']:.0f} % from the first step to the end",
            flush=True,
        )
        for title, places in (("before the first step", found["places"]), ("after it", found["after"])):
            for where, seconds in places if arguments.where else []:
                print(f"  {title}: {seconds:6.2f} s  {where}", flush=True)


if __name__ == "__main__":
    main()
