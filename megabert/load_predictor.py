"""Load a Predictor from any folder that holds a trained model: a run, or a folder that `megabert export` wrote.

Imports no torch until a folder needs it.
"""

from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigError
from .exported_folder import check_options, is_exported, load_exported
from .inference import Predictor


def load_predictor(
    path: Path,
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    batch_size: int = 32,
    task_name: str | None = None,
    overrides: Sequence[str] = (),
    for_many: bool = True,
) -> Predictor:
    """Load a run folder, one of its checkpoints, or an exported folder, for inference; as `build.load_run`."""
    if is_exported(path):
        check_options(precision, compiled=compiled)
        return load_exported(
            path, accelerator=accelerator, batch_size=batch_size, task_name=task_name, overrides=overrides
        )
    try:
        from .build import load_run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError(
            f"{path} is no exported folder, and a run needs PyTorch: pip install megabert. Where PyTorch is, "
            f"`megabert export {path} -o FOLDER --to onnx` writes a folder that needs none."
        ) from None
    return load_run(
        path,
        accelerator=accelerator,
        precision=precision,
        compiled=compiled,
        batch_size=batch_size,
        task_name=task_name,
        overrides=overrides,
        for_many=for_many,
    )
