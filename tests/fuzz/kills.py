"""Kill commands at random: started again, each must end as an undisturbed one does, with nothing lost or left over.

    python -m tests.fuzz.kills N SEED [--jobs J] [--seconds S] [--only SCENARIO...]

Makes N kills and prints counts as JSON. A case is a function of the seed and its number. Commands run in forks of a
process that has imported torch; faults are injected in the fork only: SIGKILL at a random time, SIGKILL before a file
operation, SIGKILL within a write (a limit of the file size), and a full disk from an operation or a file size on.
"""

import argparse
import collections
import contextlib
import errno
import hashlib
import http.server
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

FAULTS = ("time", "operation", "write", "full", "size")
ERRORS = (66, 73, 74)
"""Exit codes of a command whose disk is full; 66 is that of a download."""
SECONDS = 120
"""Limit of one command; one takes about a second."""
LAUNCHER_SECONDS = 3
MET = "this process has met the others\n"
"""What a process of a training prints when its heartbeat begins: from then on it ends when another one does."""
TINY = "{hidden_size: 8, num_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}"
# Imported once, not in each fork
IMPORTED = (
    "antlr4", "torch._dynamo", "hydra.core.override_parser.overrides_parser", "omegaconf", "rich.progress",
    "torch.distributed.fsdp", "torch.distributed.tensor", "megabert.annotate.job", "megabert.checkpoints.convert",
    "megabert.checkpoints.download", "megabert.cli.annotation", "megabert.cli.conversion", "megabert.cli.corpora",
    "megabert.cli.predictions", "megabert.cli.retrieval", "megabert.cli.training", "megabert.parallel.heartbeat",
    "megabert.pretraining.corpus_builder", "megabert.retrieval.bm25", "megabert.retrieval.embedding_store",
    "megabert.retrieval.search_index", "megabert.tasks.text_classification", "megabert.tasks.text_embedding",
    "megabert.tasks.token_classification", "megabert.tokenizers.train", "megabert.training.run",
)  # fmt: skip
# A process that forks must have no other thread.
FORKING = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
           "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
# Facts of a run that differ from one training to the next: times, rates, the command.
VOLATILE = ("run.json", "settings.json", "manifest.json")


class Fault:
    """What happens in a fork: `kind` at file operation or size `number`; counts the operations on a folder."""

    def __init__(self, kind, number, folder):
        self.kind, self.number, self.folder, self.count, self.pid = kind, number, str(folder), 0, os.getpid()

    def install(self):
        """Inject the fault into this process, for good."""
        if self.kind in ("write", "size"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.kind == "write" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.number, resource.RLIM_INFINITY))
        fsync = os.fsync

        def counted_fsync(descriptor):
            self.operate(may_fail=True)
            fsync(descriptor)

        os.fsync = counted_fsync
        sys.addaudithook(self.audit)

    def audit(self, event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(c in str(mode) for c in "wax+")
            if writes and self.folder in str(path):
                self.operate(may_fail=True)
        elif event in ("os.mkdir", "os.rename") and self.folder in str(arguments):
            self.operate(may_fail=event == "os.mkdir")
        elif event in ("os.remove", "os.rmdir", "os.truncate"):
            self.operate(may_fail=False)

    def operate(self, *, may_fail):
        if os.getpid() != self.pid:
            return
        self.count += 1
        if self.kind == "operation" and self.count > self.number:
            os.kill(self.pid, signal.SIGKILL)
        if self.kind == "full" and self.count > self.number and may_fail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.folder)


def fork(work, log, fault=None, environment=()):
    """Run work() in a fork with a session of its own; returns its id. Its exit code is that of work."""
    log.touch()  # the fork may be killed before it opens it
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if fault is not None:
            fault.pid = os.getpid()
            fault.install()
        code = work()
        if fault is not None and fault.kind == "count":
            log.with_suffix(".count").write_text(str(fault.count))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children, kill_at=None, victim=0, logs=()):
    """Wait for forks, killing one at a time; returns exit codes. Raises TimeoutError, and kills, at the limit.

    As a launcher does it kills the others of a process that failed before they had met; later they end by themselves.
    """
    codes, begin, lonely = {}, time.monotonic(), None
    deadline = begin + SECONDS
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
                if codes[child] and lonely is None:
                    lonely = time.monotonic() + LAUNCHER_SECONDS
        now = time.monotonic()
        if kill_at is not None and now > kill_at and children[victim] not in codes:
            os.kill(children[victim], signal.SIGKILL)
            kill_at = None
        if lonely is not None and now > lonely and len(codes) < len(children):
            lonely = float("inf")
            for child, log in zip(children, logs, strict=False):
                if child not in codes and MET not in log.read_text():
                    os.kill(child, signal.SIGKILL)
        if SECONDS < now - begin < 5 * SECONDS and now > deadline and are_running(set(children) - codes.keys()):
            deadline = now + 10  # on a busy computer they wait for a core
        if now > deadline:
            for child in children:
                if child not in codes:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            raise TimeoutError(f"a command takes more than {SECONDS} s")
        time.sleep(0.002)
    return [codes[child] for child in children]


def are_running(sessions):
    """Whether a process of these sessions computes, or waits for a core, at ten moments."""
    for _ in range(10):
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = file.read_text().rpartition(")")[2].split()
                if state == "R" and int(session) in sessions:
                    return True
        time.sleep(0.2)
    return False


def survivors(children):
    """Kill what is left of the sessions of ended forks after a grace time; returns how many had something left."""
    count = 0
    for child in children:
        deadline = time.monotonic() + 60
        try:
            while time.monotonic() < deadline:
                os.killpg(child, 0)
                time.sleep(0.02)
            os.killpg(child, signal.SIGKILL)
            count += 1
        except ProcessLookupError:
            continue
    return count


class Scenario:
    """A command with its files: words, template folder, number of processes."""

    def __init__(self, name, words, *, template=None, size=1, work=None):
        self.name, self.words, self.template, self.size, self.work = name, words, template, size, work

    def prepare(self, folder):
        if self.template is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(self.template, folder)

    def start(self, folder, fault=None, victim=0):
        """Start the command's processes; the victim has the fault."""
        words = [word.replace("{folder}", str(folder)) for word in self.words]
        common = {"MEGABERT_HOME": str(folder / "home"), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if self.size > 1:
            common |= {"WORLD_SIZE": str(self.size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
        children = []
        for rank in range(self.size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.size > 1 else {}
            log = folder.with_name(f"{folder.name}.{rank}.log")
            work = (lambda: run_command(words)) if self.work is None else (lambda: self.work(folder))
            children.append(fork(work, log, fault if rank == victim else None, common | own))
        return children


def run_command(words):
    from megabert.cli import main

    return main(words)


def find_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def digests(folder):
    """Digest the files of a folder; of volatile ones only the name, of metrics without times.

    Of the cache only what a write leaves behind: a resumed run has entries of its own.
    """
    result = {}
    for path in sorted(folder.rglob("*")):
        is_cached = folder / "home" in path.parents and ".tmp-" not in path.name
        if path.is_dir() or is_cached:
            continue
        content = b"" if path.name in VOLATILE else path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([{k: v for k, v in row.items() if "second" not in k} for row in rows]).encode()
        if path.name == "v.txt":
            content = str(len(content.splitlines())).encode()  # the trainer of tokenizers breaks ties at random
        result[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return result


def unloadable(folder):
    """List the checkpoints under their own name that do not verify."""
    from megabert.checkpoints.native import run_checkpoints
    from megabert.errors import CheckpointError

    bad = []
    for path in run_checkpoints.checkpoint_folders(folder / "run"):
        try:
            run_checkpoints.read(path, groups=("model", "optimizer"))
        except CheckpointError as error:
            bad.append(str(error))
    return bad


def make_scenarios(folder):
    """Write the inputs; returns all scenarios."""
    from megabert.checkpoints.native import run_checkpoints

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary, text, data = folder / "vocab.txt", folder / "text.txt", folder / "train.tsv"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("".join(f"{word}\n" for word in [*special, *letters, *(f"##{c}" for c in letters)]))
    words = ["".join(random.Random(number).choices(letters, k=5)) for number in range(60)]
    text.write_text("".join(f"{' '.join(words[i : i + 9])}.\n\n" for i in range(50)))
    data.write_text("".join(f"{' '.join(words[i : i + 4])}\t{i % 2}\n" for i in range(16)))
    common = [
        "train", "text_classification", f"model.train_ds.file={data}", f"model.validation_ds.file={data}",
        f"model.test_ds.file={data}", "model.language_model.pretrained_model_name=null", "trainer.accelerator=cpu",
        f"model.language_model.config={TINY}", f"model.tokenizer.vocab_file={vocabulary}", "model.optim.lr=1e-2",
        "model.dataset.max_seq_length=32", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        "exp_manager.create_tensorboard_logger=false", "exp_manager.resume_if_exists=true", "trainer.max_epochs=3",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=2", "exp_manager.explicit_log_dir={folder}/run",
    ]  # fmt: skip
    one, two = "model.train_ds.batch_size=4", "model.train_ds.batch_size=2"
    everything = "exp_manager.checkpoint_callback_params.save_top_k=-1"
    source = Scenario("source", [*common, one, everything])
    (folder / "sources").mkdir()
    source.prepare(folder / "sources" / "done")
    assert wait(source.start(folder / "sources" / "done")) == [0], (folder / "sources" / "done.0.log").read_text()
    begun = folder / "sources" / "begun"
    shutil.copytree(folder / "sources" / "done", begun)
    for entry in run_checkpoints.list_checkpoints(begun / "run")[2:]:
        shutil.rmtree(entry.path)
    shutil.rmtree(begun / "run" / "validation")
    shutil.rmtree(begun / "run" / "test")
    (begun / "run" / "test.json").unlink()
    run = folder / "sources" / "done" / "run"
    best, _ = run_checkpoints.open_best(run, groups=())
    documents = folder / "documents.pubtator"
    documents.write_text(
        "".join(f"{i}|t|Peter {words[i]}\n{i}|a|{' '.join(words[i : i + 20])}.\n\n" for i in range(40))
    )
    passages = folder / "passages.tsv"
    passages.write_text("".join(f"p{i}\t{' '.join(words[i : i + 4])}\n" for i in range(30)))
    entities = Path(__file__).parents[1] / "runs_v1" / "token_classification" / "run"
    annotate = ["annotate", str(documents), "--entities", str(entities), "--accelerator", "cpu", "--resume",
                "--shard-size", "6", "-o"]  # fmt: skip
    return [
        Scenario("train", [*common, one]),
        Scenario("resume", [*common, one], template=begun),
        Scenario("train on 2 processes", [*common, two, "trainer.devices=2"], size=2),
        Scenario(
            "predict", ["predict", str(run), f"file={data}", "output={folder}/out.jsonl", "output_dir={folder}/out",
                        "accelerator=cpu"]
        ),
        Scenario("convert", ["convert", str(best), "{folder}/hub", "--to", "huggingface"]),
        Scenario("corpus build", ["corpus", "build", str(text), "-o", "{folder}/corpus", "--vocab_file",
                                  str(vocabulary), "--workers", "1"]),
        Scenario("vocabulary train", ["vocabulary", "train", str(text), "--size", "100", "-o", "{folder}/v.txt"]),
        Scenario("embed", ["embed", str(run), str(passages), "-o", "{folder}/emb", "--shard-size", "5", "--resume",
                           "--accelerator", "cpu"]),
        Scenario("index build", ["index", "build", str(passages), "-o", "{folder}/index", "--resume"]),
        Scenario("annotate", [*annotate, "{folder}/shards", "--workers", "2"]),
        Scenario("annotate to one file", [*annotate, "{folder}/all.pubtator"]),
        Scenario("fetch", [], work=make_download(folder)),
    ]  # fmt: skip


def make_download(folder):
    """Serve a file from a fork of its own; returns the work of downloading it."""
    from megabert.checkpoints.download import download

    content = random.Random(0).randbytes(3_000_000)
    (folder / "served").mkdir()
    (folder / "served" / "weights.bin").write_bytes(content)
    port = find_port()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *ignored):
            pass

    def serve():
        os.chdir(folder / "served")
        http.server.ThreadingHTTPServer(("127.0.0.1", port), Quiet).serve_forever()

    SERVERS.append(fork(serve, folder / "server.log"))
    sha256 = hashlib.sha256(content).hexdigest()

    def work(own):
        own.mkdir(exist_ok=True)
        try:
            download(f"http://127.0.0.1:{port}/weights.bin", own / "weights.bin", expected_sha256=sha256)
        except Exception as error:
            print(repr(error), file=sys.stderr)
            return getattr(error, "exit_code", 70)
        return 0

    return work


SERVERS = []


class Case:
    """One case: a scenario, a fault, and the folder in which both happen."""

    def __init__(self, scenario, reference, folder, random_, faults):
        self.scenario, self.folder, self.reference = scenario, folder, reference
        self.victim = random_.randrange(scenario.size)
        kind = random_.choice(faults)
        number = random_.randrange(reference["operations"])
        if kind in ("write", "size"):
            number = random_.randrange(1, reference["largest"])
        self.kind, self.number, self.seconds = kind, number, random_.random() * reference["seconds"]

    def run(self):
        """Returns (whether the fault happened, the defects)."""
        scenario, folder, defects = self.scenario, self.folder, []
        scenario.prepare(folder)
        before = {path.name for path in (folder / "run" / "checkpoints").glob("step-????????")}
        fault = None if self.kind == "time" else Fault(self.kind, self.number, folder)
        try:
            children = scenario.start(folder, fault, self.victim)
            kill_at = time.monotonic() + self.seconds if self.kind == "time" else None
            codes = wait(children, kill_at, self.victim, self.logs())
        except TimeoutError as error:
            return True, [f"hang: {error}"]
        happened = any(codes)
        if survivors(children):
            defects.append("orphans: a process lives on")
        # Python ignores SIGXFSZ in the workers that a command starts
        has_errors = self.kind in ("full", "size") or (self.kind == "write" and "--workers" in scenario.words)
        expected = (0, -signal.SIGKILL, -signal.SIGXFSZ, 76, *(ERRORS if has_errors else ()))
        if not set(codes) <= set(expected) or self.has_traceback():
            defects.append(f"exit codes: {codes} {self.log()}")
        defects += [f"unloadable: {text}" for text in unloadable(folder)]
        after = {path.name for path in (folder / "run" / "checkpoints").glob("step-????????")}
        if before and not after:
            defects.append("lost: no checkpoint is left")
        try:
            codes = wait(scenario.start(folder))
        except TimeoutError as error:
            return True, [*defects, f"hang: started again, {error}"]
        found, wanted = digests(folder), self.reference["digests"]
        if any(codes) and found != wanted:
            defects.append(f"lost: started again it ends with {codes} {self.log()}")
        elif different := sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name]):
            defects.append(f"other contents: {different[:5]}")
        elif found.keys() != wanted.keys():
            defects.append(f"leftovers: {sorted(found.keys() ^ wanted.keys())[:5]}")
        return happened, defects

    def logs(self):
        return [self.folder.with_name(f"{self.folder.name}.{rank}.log") for rank in range(self.scenario.size)]

    def log(self):
        return " | ".join(log.read_text()[-600:] for log in self.logs())

    def has_traceback(self):
        return any("Traceback" in log.read_text() for log in self.logs())


class ForkedWorkers:
    """Starts the workers of `annotate` as forks: spawned ones import for a second each."""

    Pipe = staticmethod(multiprocessing.Pipe)

    def Process(self, target, args, daemon):  # noqa: N802  (multiprocessing's name)
        def run(connection, *more):
            # As a spawned one it has no handlers, and no pipe but its own, so that it ends when the command does.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.closerange(3, connection.fileno())
            os.closerange(connection.fileno() + 1, 1024)
            target(connection, *more)

        return multiprocessing.get_context("fork").Process(target=run, args=args, daemon=daemon)


def replace_parts():
    """Replace what takes long and is not tested: pictures are files of a few bytes. The heartbeat prints its begin."""
    import torch

    import megabert.annotate.pipeline as pipeline
    import megabert.training.run as training_run
    from megabert import evaluation
    from megabert.analysis import plots
    from megabert.config.parser import compose
    from megabert.parallel.heartbeat import Heartbeat
    from megabert.storage import atomic_write
    from megabert.tasks import registry

    def plot(*arguments):
        atomic_write(next(item for item in arguments[1:] if isinstance(item, Path)), "a picture")
        return True

    begin = Heartbeat.__init__

    def begin_and_print(heartbeat, launch):
        begin(heartbeat, launch)
        print(MET, end="", file=sys.stderr, flush=True)

    compose(registry.find("text_classification").settings_type, ["seed=1"], owner="train")  # its caches are filled
    torch.set_num_threads(1)
    pipeline.multiprocessing = types.SimpleNamespace(get_context=lambda kind: ForkedWorkers())
    Heartbeat.__init__ = begin_and_print
    training_run.plot_curves = plot
    evaluation.plot_confusion = plots.plot_calibration = plots.plot_lengths = plot


def measure(scenario, folder):
    """Run a scenario undisturbed; returns its results, operations, largest file and time."""
    scenario.prepare(folder)
    begin = time.monotonic()
    codes = wait(scenario.start(folder, Fault("count", 0, folder)))
    log = folder.with_name(f"{folder.name}.0.log")
    assert not any(codes), f"{scenario.name}: {codes} {log.read_text()}"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "digests": digests(folder), "operations": int(log.with_suffix(".count").read_text()),
        "largest": max(sizes), "seconds": time.monotonic() - begin,
    }  # fmt: skip


def run_job(job, jobs, quota, seed, deadline, scenarios, references, folder, faults):
    """Make `quota` kills in cases job, job + jobs, ...; writes counts to a file."""
    counts, defects, kills, number = collections.Counter(), [], 0, job
    while kills < quota and time.monotonic() < deadline:
        random_ = random.Random(f"{seed}/{number}")
        scenario = random_.choice(scenarios)
        own = folder / f"case{number}"
        case = Case(scenario, references[scenario.name], own, random_, faults)
        try:
            happened, found = case.run()
        except Exception:  # of this program; the other cases count
            happened, found = False, [f"not made: {traceback.format_exc()[-900:]}"]
        kills += happened
        counts[f"{scenario.name}: {case.kind}"] += happened
        counts["not reached"] += not happened
        defects += [f"case {number}, {scenario.name}, {case.kind} {case.number}: {text}"[:1500] for text in found]
        shutil.rmtree(own, ignore_errors=True)
        for log in case.logs():
            log.unlink(missing_ok=True)
        number += jobs
        if found:
            print(defects[-len(found) :], flush=True)
    (folder / f"job{job}.json").write_text(json.dumps([kills, counts, defects]))
    return 0


def main(words=None):
    """Make all kills; prints JSON and returns the number of defects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, help="kills")
    parser.add_argument("seed", nargs="?", default=0, type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after these")
    parser.add_argument("--only", nargs="+", help="these scenarios")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="these faults; default: all")
    parser.add_argument("--threads", action="store_true", help="fork though PyTorch has started other threads")
    arguments = parser.parse_args(words)
    for name in IMPORTED:
        importlib.import_module(name)
    threads = sorted(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))
    assert len(threads) == 1 or arguments.threads, f"a fork would lose other threads: {threads}; see FORKING, --threads"
    replace_parts()
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="megabert-kills-"))
    try:
        scenarios = [item for item in make_scenarios(folder) if item.name in (arguments.only or [item.name])]
        references = {item.name: measure(item, folder / f"reference {item.name}") for item in scenarios}
        deadline, jobs = begin + arguments.seconds, arguments.jobs
        children = []
        for job in range(jobs):
            quota = arguments.number // jobs + (job < arguments.number % jobs)
            given = (job, jobs, quota, arguments.seed, deadline, scenarios, references, folder, arguments.faults)
            children.append(fork(lambda given=given: run_job(*given), folder / f"job{job}.log"))
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(ends), [(folder / f"job{job}.log").read_text()[-2000:] for job in range(jobs)]
        results = [json.loads((folder / f"job{job}.json").read_text()) for job in range(jobs)]
    finally:
        for server in SERVERS:
            os.kill(server, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    counts, defects = collections.Counter(), []
    for _, found, texts in results:
        counts.update(found)
        defects += texts
    kinds = collections.Counter(text.split(": ")[1] for text in defects)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    report = {
        "seed": arguments.seed, "threads": threads, "kills": sum(kills for kills, *_ in results),
        "defects": len(defects), "kinds": dict(kinds), "counts": dict(sorted(counts.items())),
        "seconds": round(time.monotonic() - begin),
        "cpu_seconds": round(sum(item.ru_utime + item.ru_stime for item in used)),
        "examples": defects[:30],
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    return len(defects)


if __name__ == "__main__":
    if FORKING.items() <= os.environ.items():
        sys.exit(min(main(), 1))
    # numpy's OpenBLAS starts threads when it is imported, by what the environment says then.
    os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz.kills", *sys.argv[1:]], os.environ | FORKING)
