"""Run the cases of a fuzzing suite in a child process with bounded time and memory, and count the outcomes.

A suite is a module with NUM (cases of a full run), NUM_IN_TESTS, `prepare(folder)`, which returns the state of all
cases, and `run(state, random)`, which makes one input, reads it and returns what happened, such as "read" or "refused".
Case n of a seed is always the same. Any exception that `run` lets through, a case of more than SECONDS, and the death
of the child, as by MemoryError, are defects. A suite that has its own processes defines `main(num, seed)` instead.
"""

import contextlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

SECONDS = 30  # of a case, on a busy machine; an intact input takes hundredths
MEMORY = 2**30  # bytes of address space that the cases may use beyond those that the child begins with
MOST_DEFECTS = 20  # shown


def run_suite(name, share, seed):
    """Run a suite's cases; returns the report, whose "defects" is empty if all is well."""
    suite = importlib.import_module(f"tests.fuzz.{name}")
    num = suite.NUM_IN_TESTS if share is None else max(1, round(suite.NUM * share))
    if hasattr(suite, "main"):
        return {"suite": name, "seed": seed} | suite.main(num, seed)
    started, results, defects, next_case = time.monotonic(), [], [], 0
    while next_case < num and len(defects) < MOST_DEFECTS:
        for result in _run_in_child(suite, next_case, num, seed):
            results.append(result)
            next_case = result["case"] + 1
            if "defect" in result:
                defects.append(f"case {result['case']}: {result['defect']}")
    return {
        "suite": name,
        "seed": seed,
        "cases": len(results),
        "outcomes": dict(sorted(Counter(result["outcome"] for result in results).items())),
        "defects": defects,
        "slowest_cpu_s": max(result.get("cpu_s", 0) for result in results),
        "peak_mib": max(result.get("peak_mib", 0) for result in results),
        "seconds": round(time.monotonic() - started),
    }


def _run_in_child(suite, first, num, seed):
    """Yield the results of cases from `first` on, until one is a defect that ended the child, or all are done."""
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        os.close(readable)
        with os.fdopen(writable, "w", buffering=1) as results:
            try:
                _child(suite, first, num, seed, results)
            except BaseException as error:  # of `prepare`: else the child would go on as its parent
                results.write(json.dumps({"case": num, "outcome": "DEFECT", "defect": _describe(error)}) + "\n")
            results.flush()
            os._exit(0)
    os.close(writable)
    case, buffer = first, b""
    while True:
        limit = 20 * SECONDS if case == first else SECONDS  # the first waits for `prepare`
        if not select.select([readable], [], [], limit)[0]:
            os.kill(child, signal.SIGKILL)
            yield {"case": case, "outcome": "DEFECT", "defect": f"more than {SECONDS} s"}
            break
        if not (piece := os.read(readable, 2**16)):
            break
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            result = json.loads(line)
            case = result["case"] + 1
            yield result
    os.close(readable)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        yield {"case": case, "outcome": "DEFECT", "defect": f"the child ended with {status}"}


def _child(suite, first, num, seed, results):
    folder = Path(tempfile.mkdtemp(prefix="megabert-fuzz-"))
    try:
        with contextlib.redirect_stderr(Path(os.devnull).open("w", encoding="utf-8")):
            state = suite.prepare(folder)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            before = _peak_kib()
            for case in range(first, num):
                started, result = time.process_time(), {"case": case}
                try:
                    result["outcome"] = suite.run(state, random.Random(f"{seed}/{case}"))
                except BaseException as error:  # any is a defect, also a MemoryError
                    result |= {"outcome": "DEFECT", "defect": _describe(error)}
                result["cpu_s"] = round(time.process_time() - started, 2)
                result["peak_mib"] = (_peak_kib() - before) // 1024
                results.write(json.dumps(result) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _describe(error):
    trace, places = error.__traceback__, []
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    note = " ".join(getattr(error, "__notes__", []))
    return f"{error!r} at {' '.join(places[-4:])} {note}"[:500]
