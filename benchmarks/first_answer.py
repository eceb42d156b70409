"""Time to the first answer of `megabert predict`, beyond what importing torch takes.

    python -m benchmarks.first_answer RUN

Starts `import torch` and `megabert predict RUN "a good film"` in turn, after one of each that counts for nothing, and
prints the best CPU and elapsed seconds of each, and their differences, as a JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time


def measure(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Return the CPU and elapsed seconds of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    elapsed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed


def main() -> None:
    """Measure both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    # Installed packages have their bytecode.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    commands = {
        "torch": [sys.executable, "-c", "import torch"],
        "predict": [sys.executable, "-m", "megabert", "predict", arguments.run, "a good film", "accelerator=cpu"],
    }
    best = {name: measure(command, env) for name, command in commands.items()}
    best = dict.fromkeys(best, (float("inf"), float("inf")))
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            cpu, elapsed = measure(command, env)
            best[name] = min(best[name][0], cpu), min(best[name][1], elapsed)
    beyond = [round(after - before, 2) for before, after in zip(best["torch"], best["predict"], strict=True)]
    rounded = {name: [round(value, 2) for value in values] for name, values in best.items()}
    print(json.dumps({"cpu_and_elapsed_seconds": rounded, "beyond_torch": beyond}))


if __name__ == "__main__":
    main()
