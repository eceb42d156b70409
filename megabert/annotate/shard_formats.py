"""How documents become a shard, and shards one file: streams of one head and tail, Parquet, folders of files."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..formats.documents.document import Document
from ..formats.documents.document_formats import DocumentFormat, find_format
from ..formats.documents.losses import Losses
from ..formats.documents.mention_table import ParquetRows, mention_rows
from ..storage import atomic_file, atomic_folder, atomic_write, file_sha256, folder_sha256


class ShardFormat(ABC):
    """A format of documents in shards: workers render documents, the main process writes what they rendered."""

    def __init__(self, form: DocumentFormat) -> None:
        self.form = form

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name: a format's functions may be lambdas."""
        return shard_format, (self.form.name,)

    @property
    def ending(self) -> str:
        """Ending of a shard's name."""
        return self.form.endings[0]

    @abstractmethod
    def render(self, document: Document, losses: Losses) -> Any:
        """Turn a document into what `write` takes."""

    @abstractmethod
    def size(self, content: Any) -> int:
        """Return about how many bytes a rendered document has."""

    @abstractmethod
    def write(self, path: Path, contents: Sequence[Any]) -> Mapping[str, Any]:
        """Write a shard atomically; returns what `join` needs of it."""

    @abstractmethod
    def join(self, folder: Path, shards: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Write the documents of all shards to one file, atomically."""

    def digest(self, path: Path) -> str:
        """Compute the SHA-256 of a shard."""
        return file_sha256(path)


class StreamShards(ShardFormat):
    """Documents one after the other; a rendered one is its bytes, and the head of a file that it would be first in."""

    def render(self, document: Document, losses: Losses) -> tuple[bytes, bytes]:
        """Render a document with the format's writer."""
        assert self.form.render is not None
        return self.form.render(document, losses), self.form.head(document)

    def size(self, content: Any) -> int:
        """Count the bytes."""
        return 0 if content is None else len(content[0])

    def write(self, path: Path, contents: Sequence[Any]) -> Mapping[str, Any]:
        """Write a shard; returns the sizes of what stands before and behind its documents."""
        head = contents[0][1] if contents else self.form.head(None)
        body = self.form.separator.join(body for body, _ in contents)
        atomic_write(path, head + body + self.form.tail)
        return {"head": len(head), "body": len(body)}

    def join(self, folder: Path, shards: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Copy the documents of all shards behind the head of the first one."""
        filled = [shard for shard in shards if shard["documents"]] or shards[:1]
        with atomic_file(output) as joined:
            for number, shard in enumerate(filled):
                with (folder / shard["shard"]).open("rb") as file:
                    head = file.read(shard["head"])
                    joined.write(self.form.separator if number else head)
                    left = shard["body"]
                    while block := file.read(min(left, 1 << 20)):
                        joined.write(block)
                        left -= len(block)
            joined.write(self.form.tail if shards else self.form.head(None) + self.form.tail)


class ParquetShards(ShardFormat):
    """Rows of mentions; a rendered document is the list of its rows."""

    def render(self, document: Document, losses: Losses) -> list[dict[str, Any]]:
        """Return the rows of a document."""
        return list(mention_rows(document, losses))

    def size(self, content: Any) -> int:
        """Estimate the size from the number of rows."""
        return 100 * len(content or ())

    def write(self, path: Path, contents: Sequence[Any]) -> Mapping[str, Any]:
        """Write a shard."""
        buffer = io.BytesIO()
        rows = ParquetRows(buffer)
        for content in contents:
            rows.rows += content
        rows.close()
        atomic_write(path, buffer.getvalue())
        return {}

    def join(self, folder: Path, shards: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Copy the row groups of all shards."""
        with atomic_file(output) as file:
            joined = ParquetRows(file)
            for shard in shards:
                source = joined.parquet.ParquetFile(folder / shard["shard"])
                for number in range(source.num_row_groups):
                    joined.writer.write_table(source.read_row_group(number))
            joined.close()


class FolderShards(ShardFormat):
    """A few files a document; a rendered one is their contents by name, a shard is a folder."""

    @property
    def ending(self) -> str:
        """Folders have none."""
        return ""

    def render(self, document: Document, losses: Losses) -> dict[str, bytes]:
        """Render the files of a document."""
        assert self.form.files is not None
        return self.form.files(document, losses)

    def size(self, content: Any) -> int:
        """Count the bytes of the files."""
        return sum(map(len, (content or {}).values()))

    def write(self, path: Path, contents: Sequence[Any]) -> Mapping[str, Any]:
        """Write a folder; files whose name is taken get a number before their ending."""
        with atomic_folder(path) as folder:
            for content in contents:
                number = 1
                renamed = content
                while any((folder / name).exists() for name in renamed):
                    number += 1
                    renamed = {_numbered(name, number): data for name, data in content.items()}
                for name, data in renamed.items():
                    (folder / name).write_bytes(data)
        return {}

    def join(self, folder: Path, shards: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Refuse: several files a document are no single file."""
        raise ConfigError(f"{self.form.name} is several files a document: name a folder, not {output}.")

    def digest(self, path: Path) -> str:
        """Compute the SHA-256 of the names and contents of a shard's files."""
        return folder_sha256(path)


def _numbered(name: str, number: int) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number}{dot}{ending}"


def shard_format(name: str) -> ShardFormat:
    """Return a format that documents are written in, by its name."""
    found = find_format(name)
    if name == "parquet":
        return ParquetShards(found)
    if found.files is not None:
        return FolderShards(found)
    if found.render is None:
        raise ConfigError(f"{name} is read, not written.")
    return StreamShards(found)
