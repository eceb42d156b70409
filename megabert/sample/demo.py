"""Demo: fine-tune on the shipped sample, evaluate, answer a question; 2 minutes on two cores, no downloads.

Prints and runs the commands train, evaluate and predict.
"""

import json
import shlex
import time
from pathlib import Path

from ..cli import main as megabert
from ..formats.squad import read_squad
from . import squad_file

TRAIN, DEV = squad_file("train"), squad_file("dev")
ENCODER = "megabert-mini-uncased"


def run(*words: str) -> None:
    """Print a command and run it."""
    print(f"\n$ megabert {shlex.join(words)}", flush=True)
    code = megabert(words)
    if code:
        raise SystemExit(code)


def main() -> None:
    """Run the demo in a folder under runs/."""
    started = time.monotonic()
    folder = Path("runs") / "demo" / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    print(
        f"This demo fine-tunes {ENCODER} on question answering, evaluates it and answers a question.\n"
        "The encoder is a small Megatron-BERT shipped with megabert: 11.7M parameters, pre-trained in nine minutes.\n"
        "The sample is small and uniform, so scores are high on unseen paragraphs, too; real questions need a\n"
        "published checkpoint and more data (see the README)."
    )
    run(
        "train",
        "question_answering",
        f"model.train_ds.file={TRAIN}",
        f"model.validation_ds={DEV}",
        f"model.language_model.pretrained_model_name={ENCODER}",
        "model.language_model.hidden_dropout=0.0",
        "model.language_model.attention_dropout=0.0",
        "model.dataset.max_seq_length=256",
        "model.train_ds.batch_size=16",
        "model.optim.lr=5e-4",
        "model.optim.sched.name=WarmupAnnealing",
        "model.optim.sched.warmup_ratio=0.1",
        "trainer.max_epochs=4",
        "trainer.val_check_interval=0",
        "trainer.gradient_clip_val=1.0",
        "trainer.accelerator=cpu",
        f"exp_manager.explicit_log_dir={folder}",
    )
    print("\nOn the training paragraphs:")
    run("evaluate", str(folder), f"file={TRAIN}", "accelerator=cpu")
    print("\nOn unseen paragraphs:")
    run("evaluate", str(folder), f"file={DEV}", "accelerator=cpu")
    example = read_squad(TRAIN)[0]
    run("predict", str(folder), f"question={example.question}", f"context={example.context}", "accelerator=cpu")
    assert example.answers, "every question of the sample has an answer"
    print(f"\nThe gold answer is {json.dumps(example.answers[0].text)}.")
    print(f"Done in {time.monotonic() - started:.0f} s. Run folder: {folder}. Curves: {folder / 'curves.png'}.")
    print(f"As a page in the browser: pip install '.[serve]', then megabert serve qa={folder}")


if __name__ == "__main__":
    main()
