"""Load a Predictor from any folder that holds a trained model: a run, or a folder that `megabert export` wrote.

Imports no torch until a folder needs it.
"""

from pathlib import Path
from typing import Unpack

from .errors import ConfigError
from .exported_folder import is_exported, load_exported
from .inference import LoadOptions, Predictor


def load_predictor(path: Path, **options: Unpack[LoadOptions]) -> Predictor:
    """Load a run folder, one of its checkpoints, or an exported folder, for inference; as `build.load_run`."""
    if is_exported(path):
        return load_exported(path, **options)
    try:
        from .build import load_run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError(
            f"{path} is no exported folder, and a run needs PyTorch: pip install megabert. Where PyTorch is, "
            f"`megabert export {path} -o FOLDER --to onnx` writes a folder that needs none."
        ) from None
    return load_run(path, **options)
