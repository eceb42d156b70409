"""The demo: fine-tune on the shipped sample, evaluate, ask a question; minutes on two cores, nothing to download.

It runs the package's own commands and shows each before it runs.
"""

import json
import shlex
import time
from pathlib import Path

from ..cli import main as megabert
from ..formats.squad import read_squad

HERE = Path(__file__).parent
TRAIN, DEV = HERE / "squad_train.json", HERE / "squad_dev.json"

ENCODER = "megabert-mini-uncased"


def run(*words: str) -> None:
    """Show a command and run it."""
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
        f"This demo shows the way from a SQuAD file to an answer. It starts from {ENCODER}, the small\n"
        "Megatron-BERT that comes with megabert: 11.7M parameters, pre-trained in nine minutes. The sample's 44\n"
        "paragraphs and 104 notes are much alike, so it scores well on those that it has not seen, too; real answers\n"
        "need a published checkpoint and more data (see the README)."
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
    print("\nOn the paragraphs that it learned from:")
    run("evaluate", str(folder), f"file={TRAIN}", "accelerator=cpu")
    print("\nOn paragraphs that it has not seen:")
    run("evaluate", str(folder), f"file={DEV}", "accelerator=cpu")
    example = read_squad(TRAIN)[0]
    run("predict", str(folder), f"question={example.question}", f"context={example.context}", "accelerator=cpu")
    assert example.answers, "every question of the sample has an answer"
    print(f"\nThe sample's own answer is {json.dumps(example.answers[0].text)}.")
    print(f"Done in {time.monotonic() - started:.0f} s. The run is in {folder}; look at {folder / 'curves.png'}.")


if __name__ == "__main__":
    main()
