"""Megatron-LM's BERT family in PyTorch: load checkpoints, fine-tune, evaluate, predict.

>>> import megabert
>>> reader = megabert.load("runs/question_answering/2026-01-31_12-00-00")   # doctest: +SKIP
>>> reader.predict(question="Who wrote it?", context="...").text            # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Task", "__version__", "load", "load_embedder", "load_encoder", "load_generator", "load_linker"]

if TYPE_CHECKING:
    from pathlib import Path

    from .generation.generator import Generator
    from .inference import Predictor
    from .linking.linker import Linker
    from .model.encoder import Encoder
    from .tasks.task import Task
    from .tokenizers.wordpiece import Tokenizer


def load(
    run: "str | Path", *, accelerator: str = "auto", precision: str = "auto", task: str | None = None
) -> "Predictor":
    """Load the best checkpoint of a run folder, an exported folder, or a Hugging Face folder, for inference.

    Needs no network access and no other file; an exported folder needs no torch. `accelerator` is auto, gpu or cpu;
    `precision` auto, 32, bf16, 16 or fp8, of an exported folder auto; `task` is the Python file of your own task.
    Threads may share what is loaded. A process that is forked later computes on a CPU, with one thread; one that is
    spawned loads for itself.
    Raises CheckpointError if the folder is neither, or is damaged.
    """
    from pathlib import Path

    from .load_predictor import load_predictor

    return load_predictor(Path(run), accelerator=accelerator, precision=precision, task_name=task)


def load_embedder(
    name_or_path: "str | Path", *, accelerator: str = "auto", precision: str = "auto", batch_size: int = 128
) -> "Predictor":
    """Load what embeds texts: a run, or what `load_encoder` takes, by the mean of its last hidden states.

    `load_embedder(NAME).embed(texts)` is an array [N, D]. `batch_size` is a token budget, in sequences.
    """
    import os

    from .build import load_embedder as load_from
    from .checkpoints.catalog import cache_home

    home = cache_home(os.environ)
    return load_from(str(name_or_path), home=home, accelerator=accelerator, precision=precision, batch_size=batch_size)


def load_encoder(name_or_path: "str | Path") -> "tuple[Encoder, Tokenizer]":
    """Load an encoder as a plain nn.Module, with its tokenizer: for embeddings, or for a head of your own.

    Takes a published name (`megabert models`), a Megatron-LM checkpoint, a Hugging Face folder, or a run folder.
    """
    import os

    from .build import load_encoder as load_from
    from .checkpoints.catalog import cache_home

    return load_from(str(name_or_path), home=cache_home(os.environ))


def load_generator(
    name_or_path: "str | Path", *, accelerator: str = "auto", precision: str = "auto", vocab_file: str | None = None
) -> "Generator":
    """Load a causal language model (GPT-2) that continues texts.

    Takes what `load_encoder` takes; `vocab_file` is GPT-2's vocab.json, with merges.txt beside it, where a checkpoint
    comes without.
    """
    import os

    from .checkpoints.catalog import cache_home
    from .generation.load_generator import load_generator as load_from

    home = cache_home(os.environ)
    return load_from(str(name_or_path), home=home, accelerator=accelerator, precision=precision, vocab_file=vocab_file)


def load_linker(
    dictionary: "str | Path", run: "str | Path | None" = None, *, accelerator: str = "auto", precision: str = "auto"
) -> "Linker":
    """Open a dictionary to link names to: `load_linker(DICT).link(["breast cancer"])[0].identifier`.

    `run` is one whose embeddings the dictionary has (`megabert dictionary embed`); without it n-grams alone decide.
    Raises InputError if the folder is no dictionary.
    """
    from .linking.open_linker import load_linker as open_linker

    return open_linker(dictionary, run, accelerator=accelerator, precision=precision)


def __getattr__(name: str) -> Any:
    # Lazy: `import megabert` must not import torch.
    if name == "Task":
        from .tasks.task import Task

        return Task
    raise AttributeError(f"module 'megabert' has no attribute {name!r}")
