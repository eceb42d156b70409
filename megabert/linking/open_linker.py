"""Open a linker: a dictionary, the calibration that was tuned for it, and with a run its embeddings of the names."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_documents import parse_sealed, sealed
from ..storage import atomic_write
from .dictionary import Dictionary
from .linker import Calibration, Linker

LEXICAL = "n-grams"


def load_linker(
    folder: str | Path, run: str | Path | None = None, *, accelerator: str = "auto", precision: str = "auto"
) -> Linker:
    """Open a dictionary as a linker, with the embeddings of a run where one is given.

    Raises InputError if the folder is no dictionary, or has no embeddings of the run.
    """
    dictionary = Dictionary.open(folder)
    if run is None:
        return Linker(dictionary, read_calibration(dictionary, ""))
    from .dense import open_dense

    dense = open_dense(dictionary, Path(run), accelerator=accelerator, precision=precision)
    return Linker(dictionary, read_calibration(dictionary, dense.run_digest), dense)


def calibration_file(dictionary: Dictionary, run_digest: str) -> Path:
    """Return the file of the calibration for a run, "" for n-grams alone."""
    return dictionary.folder / f"calibration-{run_digest[:16] or LEXICAL}.json"


def read_calibration(dictionary: Dictionary, run_digest: str) -> Calibration:
    """Read the calibration that was tuned for a run; the default where there is none."""
    file = calibration_file(dictionary, run_digest)
    if not file.exists():
        return Calibration()
    document = parse_sealed(file.read_bytes(), str(file))
    if document["dictionary"] != dictionary.digest:
        raise InputError(f"{file} was tuned for another dictionary. Remove it, or tune again.")
    return Calibration(**{field.name: document[field.name] for field in fields(Calibration)})


def write_calibration(
    dictionary: Dictionary, run_digest: str, calibration: Calibration, report: dict[str, Any]
) -> Path:
    """Keep a calibration beside the dictionary, with what it was tuned on."""
    file = calibration_file(dictionary, run_digest)
    document = {"dictionary": dictionary.digest, "run": run_digest, **asdict(calibration), "tuned_on": report}
    atomic_write(file, sealed(json.loads(json.dumps(document))))
    return file
