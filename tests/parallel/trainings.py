"""Complete trainings on several processes, for tests: forked as in `processes`, each runs the command's main function.

    python -m tests.parallel.trainings FOLDER SQUAD_FILE VOCAB_FILE

Writes run folders and logs to FOLDER, and results.json with the exit codes.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed.fsdp
import torch.distributed.tensor

from megabert import evaluation
from megabert.checkpoints.native import run_checkpoints as run
from megabert.cli import main as megabert
from megabert.config.parser import compose
from megabert.parallel import execution
from megabert.tasks import registry
from megabert.training import run as training_run
from megabert.training import saver
from tests.parallel.processes import check_alone, find_port

TINY = "hidden_size: 32, num_layers: 2, num_attention_heads: 4, max_position_embeddings: 64"
NO_DROPOUT = ("model.language_model.hidden_dropout=0", "model.language_model.attention_dropout=0")
STEPS = 20
CUT = 6
FINISHED = (
    f"trainer.max_steps={STEPS}", "exp_manager.checkpoint_callback_params.every_n_train_steps=6",
    "trainer.val_check_interval=10",
)  # fmt: skip


def words(squad, vocabulary, folder, *more):
    """Build a command line; a micro-batch has two sequences of a process.

    Some gradients are rounding errors only (a bias that shifts all logits equally); a large eps keeps Adam from
    turning them into steps.
    """
    return [
        "train", "question_answering", f"model.train_ds.file={squad}", f"model.validation_ds={squad}",
        "model.language_model.pretrained_model_name=null", f"model.language_model.config={{{TINY}}}",
        f"model.tokenizer.vocab_file={vocabulary}", "model.dataset.max_seq_length=64",
        "model.dataset.max_query_length=24", "model.dataset.doc_stride=16", "model.train_ds.batch_size=2",
        "model.optim.lr=5e-4", "model.optim.eps=1e-4", "model.optim.sched.name=WarmupPolicy", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "trainer.max_epochs=1000",
        "exp_manager.create_tensorboard_logger=false", f"exp_manager.explicit_log_dir={folder}", *more,
    ]  # fmt: skip


def start(command, size, log):
    """Fork the processes of a training and return their ids; each logs to its own file."""
    port = find_port()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if size > 1:
                    os.environ.update(
                        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                        MASTER_PORT=str(port),
                    )  # fmt: skip
                with log.with_suffix(f".{rank}").open("w") as file:
                    os.dup2(file.fileno(), 2)
                    code = megabert(command)
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def copy_interrupted(folder, to):
    """Copy a run as if it had been killed after the checkpoint of step CUT."""
    shutil.copytree(folder, to)
    for entry in run.list_checkpoints(to):
        if entry.step > CUT:
            shutil.rmtree(entry.path)


def wait_for_steps(folder, count):
    deadline = time.monotonic() + 300
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def main():
    folder, squad, vocabulary = (Path(word) for word in sys.argv[1:4])
    torch.set_num_threads(1)
    os.environ.update(MEGABERT_HOME=str(folder / "home"), TORCH_CPP_LOG_LEVEL="ERROR")
    saver.prune = lambda *arguments: None  # keep every checkpoint, to resume from one in the middle
    # Pictures take longer than the training, and each process would import what settings are parsed with.
    training_run.plot_curves = lambda *arguments: True
    evaluation.plot_confusion, evaluation.plot_judged = (lambda *arguments: False), (lambda *arguments: [])
    compose(registry.find("question_answering").settings_type, ["seed=1"], owner="train")
    check_alone()
    results = {}

    def train(name, size, *more, source=None):
        for _ in range(2):
            if source is not None:
                copy_interrupted(folder / source, folder / name)
            children = start(words(squad, vocabulary, folder / name, *more), size, folder / f"{name}.log")
            results[name] = wait(children)
            if not any(code < 0 for code in results[name]):
                return
            # A signal that no test sent: see processes.main.
            print(f"{name} was ended by a signal: {results[name]}; running it once more", file=sys.stderr)
            shutil.rmtree(folder / name)

    def resume(name, source, size, *more):
        train(name, size, *more, "exp_manager.resume_if_exists=true", source=source)

    def interrupt(name, number, *more):
        """Send a signal to one of two processes in the middle of a training."""
        children = start(words(squad, vocabulary, folder / name, *more), 2, folder / f"{name}.log")
        wait_for_steps(folder / name, 30)
        begin = time.monotonic()
        os.kill(children[1], number)
        results[name] = wait(children)
        results[f"{name}.seconds"] = time.monotonic() - begin

    exact = (*FINISHED, *NO_DROPOUT)
    train("data", 2, *exact, "trainer.devices=2")
    resume("data_as_one", "data", 1, *exact)
    resume("data_as_sequence", "data", 2, *exact, "trainer.devices=2", "parallel.tensor=2", "parallel.sequence=true")
    resume("data_as_smaller", "data", 2, *exact, "trainer.devices=2", "model.train_ds.batch_size=1")
    mixed = ("trainer.devices=4", "parallel.fsdp=2", "parallel.tensor=2", "parallel.activation_checkpointing=true")
    memory, execution.device_memory = execution.device_memory, lambda device: 0.0  # so that FSDP shards weights, too
    train("mixed", 4, *exact, *mixed)
    resume("mixed_again", "mixed", 4, *exact, *mixed)
    execution.device_memory = memory
    resume("mixed_as_one", "mixed", 1, *exact)
    dropping = (*FINISHED, "trainer.devices=2", "parallel.fsdp=2")
    train("dropping", 2, *dropping)
    resume("dropping_again", "dropping", 2, *dropping)
    resume("dropping_as_one", "dropping", 1, *FINISHED)
    saving = "exp_manager.checkpoint_callback_params.every_n_train_steps=10"
    endless = ("trainer.max_epochs=100000", "trainer.val_check_interval=0", saving, "trainer.devices=2")
    interrupt("killed", signal.SIGKILL, *endless)
    children = start(["train", "question_answering", "--resume", str(folder / "killed"), "trainer.max_steps=60"], 2,
                     folder / "killed_again.log")  # fmt: skip
    results["killed_again"] = wait(children)
    interrupt("signalled", signal.SIGTERM, *endless)
    (folder / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
