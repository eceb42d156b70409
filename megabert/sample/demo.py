"""The demo: fine-tune on the shipped sample, evaluate, ask a question; minutes on two cores, nothing to download.

It runs the package's own commands and shows each before it runs.
"""

import json
import shlex
import time
from pathlib import Path

from ..cli import main as megabert
from ..text.squad import Example, read_squad
from ..text.tokenizer import SPECIAL_TOKENS

HERE = Path(__file__).parent
TRAIN, DEV = HERE / "squad_train.json", HERE / "squad_dev.json"

NETWORK = "{hidden_size: 128, num_layers: 2, num_attention_heads: 4, max_position_embeddings: 256}"


def write_vocabulary(path: Path) -> None:
    """Write a WordPiece vocabulary that spells any ASCII text and has the sample's words whole."""
    counts: dict[str, int] = {}
    for example in read_squad(TRAIN):
        for word in _words(example):
            counts[word] = counts.get(word, 0) + 1
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    whole = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    tokens = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *whole]
    path.write_text("".join(f"{token}\n" for token in dict.fromkeys(tokens)), encoding="utf-8")


def _words(example: Example) -> list[str]:
    text = f"{example.question} {example.context}".lower()
    return "".join(letter if letter.isalnum() else " " for letter in text).split()


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
    vocabulary = folder / "vocab.txt"
    write_vocabulary(vocabulary)
    print(
        "This demo shows the way from a SQuAD file to an answer. It starts from RANDOM weights: a network of 2 layers\n"
        "that has read nothing but 44 paragraphs and 104 notes. It learns those by heart and little beyond; real\n"
        "answers need a pre-trained checkpoint (see the README)."
    )
    run(
        "train",
        "question_answering",
        f"model.train_ds.file={TRAIN}",
        f"model.validation_ds={DEV}",
        "model.language_model.pretrained_model_name=null",
        f"model.language_model.config={NETWORK}",
        "model.language_model.hidden_dropout=0.0",
        "model.language_model.attention_dropout=0.0",
        f"model.tokenizer.vocab_file={vocabulary}",
        "model.dataset.max_seq_length=256",
        "model.train_ds.batch_size=16",
        "model.optim.lr=1e-3",
        "model.optim.sched.name=WarmupAnnealing",
        "model.optim.sched.warmup_ratio=0.1",
        "trainer.max_epochs=10",
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
