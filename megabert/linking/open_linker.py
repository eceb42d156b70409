"""Open a linker: a dictionary, what was tuned and learned for it, and with a run its embeddings of the names."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_documents import parse_sealed, sealed
from ..storage import atomic_write
from .candidate_ranker import CandidateRanker
from .dictionary import Dictionary
from .linker import Calibration, Linker

LEXICAL = "n-grams"


def load_linker(
    folder: str | Path,
    run: str | Path | None = None,
    *,
    reader: str | Path | None = None,
    accelerator: str = "auto",
    precision: str = "auto",
) -> Linker:
    """Open a dictionary as a linker, with the embeddings of a run, and with a run of text_ranking that reads sentences.

    Raises InputError if the folder is no dictionary, or has no embeddings of the run.
    """
    if reader is not None:
        from ..load_predictor import load_predictor
        from .cross_encoder import CrossEncoder

        predictor = load_predictor(Path(reader), accelerator=accelerator, precision=precision)
        if (task := predictor.task.name()) != "text_ranking":
            raise InputError(f"{reader} is a run of {task}; candidates are read by one of text_ranking.")
        linker = load_linker(folder, run, accelerator=accelerator, precision=precision)
        return replace(linker, reader=CrossEncoder(predictor, linker.dictionary))
    dictionary = Dictionary.open(folder)
    if run is None:
        return Linker(dictionary, read_calibration(dictionary, ""), None, read_ranker(dictionary, ""))
    from .dense import open_dense

    dense = open_dense(dictionary, Path(run), accelerator=accelerator, precision=precision)
    calibration, ranker = read_calibration(dictionary, dense.run_digest), read_ranker(dictionary, dense.run_digest)
    return Linker(dictionary, calibration, dense, ranker)


def linker_file(dictionary: Dictionary, run_digest: str, kind: str) -> Path:
    """Return the file of the calibration or ranker for a run, "" for n-grams alone."""
    return dictionary.folder / f"{kind}-{run_digest[:16] or LEXICAL}.json"


def read_calibration(dictionary: Dictionary, run_digest: str) -> Calibration:
    """Read the calibration that was tuned for a run; the default where there is none."""
    document = _read(dictionary, run_digest, "calibration")
    return Calibration(**{field.name: document[field.name] for field in fields(Calibration)} if document else {})


def read_ranker(dictionary: Dictionary, run_digest: str) -> CandidateRanker | None:
    """Read the ranker that was learned with a run; None where there is none."""
    document = _read(dictionary, run_digest, "ranker")
    return CandidateRanker(document["weights"], document["mentions"]) if document else None


def _read(dictionary: Dictionary, run_digest: str, kind: str) -> dict[str, Any]:
    file = linker_file(dictionary, run_digest, kind)
    if not file.exists():
        return {}
    document: dict[str, Any] = parse_sealed(file.read_bytes(), str(file))
    if document["dictionary"] != dictionary.digest:
        raise InputError(f"{file} was made for another dictionary. Remove it, or make it again.")
    return document


def write_calibration(
    dictionary: Dictionary, run_digest: str, calibration: Calibration, report: dict[str, Any]
) -> Path:
    """Keep a calibration beside the dictionary, with what it was tuned on."""
    return _write(dictionary, run_digest, "calibration", {**asdict(calibration), "tuned_on": report})


def write_ranker(dictionary: Dictionary, run_digest: str, ranker: CandidateRanker, report: dict[str, Any]) -> Path:
    """Keep a ranker beside the dictionary, with what it was learned from."""
    own = {"weights": ranker.weights, "mentions": ranker.mentions, "learned_from": report}
    return _write(dictionary, run_digest, "ranker", own)


def _write(dictionary: Dictionary, run_digest: str, kind: str, own: dict[str, Any]) -> Path:
    file = linker_file(dictionary, run_digest, kind)
    document = {"dictionary": dictionary.digest, "run": run_digest, **own}
    atomic_write(file, sealed(json.loads(json.dumps(document))))
    return file
