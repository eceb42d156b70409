"""Rows of Parquet and Arrow files, such as the Hugging Face library datasets writes; needs the extra `documents`.

Integers of its class labels become their names, which stand in the schema's metadata under "huggingface".
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from .record_streams import RecordStream, is_held
from .rows import Row

TABLE_SUFFIXES = (".parquet", ".arrow")
NUM_ROWS = 1024  # converted to Python's objects at once


def parquet_rows(path: Path) -> Sequence[Row]:
    """Read the rows of a file, of a large one as a stream. Raises InputError if it is damaged or has none."""
    rows: Sequence[Row] = RecordStream(lambda: _rows(path))
    rows = list(rows) if is_held(path) else rows
    if not rows:
        raise InputError(f"{path} holds no rows.")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    number, names = 0, None
    for batch in record_batches(path):
        names = class_names(batch.schema.metadata or {}) if names is None else names
        for values in batch.to_pylist():
            number += 1
            named = {key: _named(plain(value), names.get(key, ())) for key, value in values.items()}
            yield Row(named, f"{path}, row {number}")


def record_batches(path: Path) -> Iterator[Any]:
    """Read a file in batches of rows. Raises InputError if it cannot be read."""
    pyarrow = import_pyarrow()
    try:
        if path.suffix.lower() == ".parquet":
            yield from pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=NUM_ROWS)
            return
        with pyarrow.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(path)
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                file.seek(0)
                yield from pyarrow.ipc.open_stream(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix[1:].capitalize()}: {str(error)[:200]}") from None


def class_names(metadata: Any) -> dict[str, Sequence[str]]:
    """Return the names of each column's class labels."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    parts = {key: item.get("feature", item) if isinstance(item, dict) else {} for key, item in features.items()}
    return {key: item["names"] for key, item in parts.items() if isinstance(item, dict) and "names" in item}


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value] if names else value
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def plain(value: Any) -> Any:
    """Return a value as JSON has it; dates and the like as strings, bytes in UTF-8 as their text."""
    if isinstance(value, bytes):  # strings of Spark and Impala have no mark of being text
        with suppress(UnicodeDecodeError):
            return value.decode()
    return value if isinstance(value, str | int | float | bool | None | list | dict) else str(value)


def import_pyarrow() -> Any:
    """Import pyarrow with Parquet, or explain how to install it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'megabert[documents]'.") from None
    return pyarrow
