"""The command `export`: a trained run in a format that runs elsewhere."""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .console import log, new_parser

DETAILS = """\
onnx is for onnxruntime, and for every command that takes a run: predict, annotate and evaluate then need no PyTorch.
huggingface is a folder for transformers, with the head, a fast tokenizer and a model card.
torch-export is a program of torch.export (model.pt2), for PyTorch without megabert. The result is compared with the
run: logits on several shapes, and with --file DEV the score before and after. What differs is not written."""


def export(words: Sequence[str]) -> None:
    """Write a trained run for use elsewhere, and prove it: megabert export RUN -o FOLDER --to FORMAT."""
    arguments = _parse(words)
    if arguments.output.exists():
        raise ConfigError(f"{arguments.output} exists. Remove it, or name another folder.")
    if arguments.to != "onnx" and (arguments.int8 or arguments.calibration or arguments.force):
        raise ConfigError("--int8, --calibration and --force are for --to onnx.")
    with _merged(arguments.run, arguments.output, arguments.task) as arguments.run:
        for line in FORMATS[arguments.to](arguments):
            log(line)
    log(f"Wrote {arguments.output}.")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("export", export, DETAILS)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder, or one of its checkpoint folders")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write; it must not exist yet")
    add("--to", required=True, choices=tuple(FORMATS), help="format to write")
    add("--file", type=Path, metavar="DEV", help="data file with labels: the score before and after")
    add("--int8", action="store_true", help="onnx: linear layers and embeddings in 8 bits; refused if the score falls")
    add("--calibration", type=Path, metavar="FILE", help="--int8: data to measure a static range for each layer on")
    add("--force", action="store_true", help="--int8: write it although the score falls by more than 0.5")
    add("--task", metavar="FILE", help="Python file of the task, if the run is of your own task")
    return parser.parse_args(list(words))


@contextmanager
def _merged(run: Path, output: Path, task: str | None) -> Iterator[Path]:
    """Merge a run's adapters into its weights, for as long as it is exported; a run without adapters stays itself."""
    from ..checkpoints.native.run_checkpoints import CHECKPOINTS, MANIFEST, open_best

    is_run = (run / CHECKPOINTS).exists() or (run / MANIFEST).exists()
    if not is_run or "adapter" not in open_best(run, groups=())[1].documents:
        yield run
        return
    from ..merging import merge_run

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        merge_run(run, Path(folder) / "merged", task_name=task)
        log("The run's adapters are merged into its weights.")
        yield Path(folder) / "merged"


def _to_onnx(arguments: argparse.Namespace) -> Iterable[str]:
    try:
        from ..export.onnx_export import OnnxOptions, export_onnx
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript"):
            raise
        raise ConfigError("--to onnx needs onnx, onnxscript and onnxruntime: pip install 'megabert[onnx]'.") from None
    options = OnnxOptions(arguments.int8, arguments.calibration, arguments.file, arguments.force, arguments.task)
    return export_onnx(arguments.run, arguments.output, options)


def _to_huggingface(arguments: argparse.Namespace) -> Iterable[str]:
    from ..export.huggingface_export import export_huggingface

    return export_huggingface(arguments.run, arguments.output, arguments.file)


def _to_torch_program(arguments: argparse.Namespace) -> Iterable[str]:
    from ..export.torch_program import export_program

    return export_program(arguments.run, arguments.output, file=arguments.file, task=arguments.task)


FORMATS: Mapping[str, Callable[[argparse.Namespace], Iterable[str]]] = {
    "onnx": _to_onnx,
    "huggingface": _to_huggingface,
    "torch-export": _to_torch_program,
}
"""Functions that write `arguments.output`, and yield lines for the user."""
