"""The command that merges adapters into the weights: merge."""

from collections.abc import Sequence
from pathlib import Path

from .console import log, new_parser


def merge(words: Sequence[str]) -> None:
    """Merge a run's adapters into its weights: megabert merge RUN -o FOLDER."""
    parser = new_parser(
        "merge",
        merge,
        "FOLDER is a run folder with whole weights, in float32, for every command. With --peft it holds adapters and "
        "head in PEFT's format instead. The base is loaded from where the run's settings name it.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with adapters, or one of its checkpoints")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings that differ, such as the base's path"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")
    parser.add_argument("--peft", action="store_true", help="write adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--task", metavar="FILE", help="the file of a task of your own")
    arguments = parser.parse_intermixed_args(list(words))
    from ..merging import merge_run

    merge_run(
        arguments.run,
        arguments.output,
        as_peft=arguments.peft,
        task_name=arguments.task,
        overrides=arguments.settings,
    )
    log(f"written: {arguments.output}")
