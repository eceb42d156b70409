"""JSON, YAML and XML of every kind that is read, with one value of another type, huge, deep, or damaged bytes.

Sealed documents get a new seal, as a hostile author would make it. Readers of data files are given all of theirs.
"""

import contextlib
import functools
import json
import shutil
import warnings
from pathlib import Path

import torch
import yaml

from megabert.analysis.metrics_file import read_metrics
from megabert.build import load_run
from megabert.checkpoints import catalog
from megabert.checkpoints.convert import Target, convert
from megabert.checkpoints.native import run_checkpoints
from megabert.checkpoints.open import open_checkpoint
from megabert.checkpoints.partial_download import PartialDownload
from megabert.checkpoints.tokenizer_files import read_huggingface_tokenizer
from megabert.errors import MegabertError
from megabert.formats.corpus_documents import read_documents
from megabert.json_documents import sealed
from megabert.storage import file_sha256
from tests.checkpoints.nemo.test_open_nemo import CONFIG, pack, saved
from tests.checkpoints.networks import VOCABULARY, write
from tests.checkpoints.test_download import SHA256
from tests.formats.test_corpus_documents import PUBMED
from tests.fuzz.bytes import damaged
from tests.tasks.test_malformed import READERS

NUM, NUM_IN_TESTS = 2_000, 60
RUN = Path(__file__).parents[1] / "runs_v1" / "text_classification" / "run"
VALUES = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "",
    "x", "é", "\ud800", "\0", "a\nb", "../x", "/etc/passwd", "1", "x" * 10_000, [], {}, [1], ["x"], [[]], {"x": 1},
    {"": {}},
    [None] * 10_000, {"_target_": "os.system"}, "${oc.env:HOME}", "\x1b[31m",
]  # fmt: skip
DEEP = 100_000


def changed(document, random):
    """Return a copy with one value replaced, removed, renamed or nested."""
    document = json.loads(json.dumps(document))
    places = list(_places(document, []))
    owner, key = random.choice(places)
    match random.choice(("replace", "replace", "replace", "remove", "rename", "wrap", "repeat")):
        case "remove":
            del owner[key]
        case "rename" if isinstance(owner, dict):
            owner[random.choice(("x", "", "é", str(key).upper(), f"{key} "))] = owner.pop(key)
        case "wrap":
            owner[key] = random.choice(([owner[key]], {"x": owner[key]}, str(owner[key])))
        case "repeat" if isinstance(owner, list):
            owner[:] = owner * 3
        case _:
            owner[key] = random.choice(VALUES)
    return document


def _places(document, path):
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items):
        yield document, key
        yield from _places(value, [*path, key])


def raw(content, random):
    """Return bytes that are no document, or another."""
    return random.choice(
        (
            lambda: damaged(content, random),
            lambda: b"[" * DEEP,
            lambda: b'{"a":' * DEEP,
            lambda: b"[" * 900 + b"]" * 900,
            lambda: b"1" * 5000,
            lambda: b"1e999",
            lambda: content.decode("utf-8", "replace").encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.replace(b"e", b"\xff", 1),
            lambda: content + content,
            lambda: b"",
            lambda: b"null",
            lambda: b"<a>" * DEEP,
            lambda: (
                b'<?xml version="1.0" encoding="%s"?>' % random.choice((b"utf-7", b"x", b"utf-16", b"ebcdic")) + content
            ),
        )
    )()


def prepare(folder):
    """Write one of each; returns a list of (file, reader)."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ours, hub = folder / "ours", folder / "hub"
    write(ours, "one layer", vocabulary=VOCABULARY)
    convert(open_checkpoint(ours), hub, Target("huggingface"), num_tokens=50, progress=None)
    shutil.copytree(RUN, folder / "run")
    (step,) = (folder / "run" / "checkpoints").iterdir()
    cases = [(file, functools.partial(open_checkpoint, ours)) for file in sorted(ours.glob("*.json"))]
    cases += [(file, functools.partial(read_run, folder / "run", step)) for file in sorted(step.glob("*.json"))]
    cases.append((folder / "run" / "run.json", functools.partial(load_run, folder / "run")))
    cases += [(file, functools.partial(open_hub, hub)) for file in sorted(hub.glob("*.json"))]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_tokenizer(tokenizer)
    assert read_huggingface_tokenizer(tokenizer)[1].num_tokens == 9
    cases += [
        (file, functools.partial(read_huggingface_tokenizer, tokenizer)) for file in sorted(tokenizer.glob("*.json"))
    ]
    write_shards(folder / "shards", hub)
    cases.append((folder / "shards" / "model.safetensors.index.json", functools.partial(open_hub, folder / "shards")))
    nemo = folder / "nemo.yaml"
    nemo.write_text(yaml.dump(CONFIG))
    cases.append((nemo, functools.partial(open_nemo, folder / "new.nemo", nemo, saved({"model.x": torch.ones(2)}))))
    record = {"size": 3, "mtime_ns": 1, "sha256": SHA256, "source": "x", "date": "2026"}
    (folder / catalog.RECORD_NAME).write_text(json.dumps({"vocab.txt": record}))
    cases.append((folder / catalog.RECORD_NAME, lambda: catalog._read_records(folder)))
    (folder / "f.part.json").write_text(json.dumps({"url": "u", "etag": '"x"', "last_modified": None, "total": 3}))
    (folder / "f.part").write_bytes(b"abc")
    cases.append((folder / "f.part.json", lambda: PartialDownload(folder / "f", "u", None).version.validator))
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0, "split": "train", "loss": 1.5}\n')
    cases.append((folder / "metrics.jsonl", lambda: read_metrics(folder / "metrics.jsonl")))
    (folder / "c.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    (folder / "c.xml").write_text(PUBMED)
    cases += [(folder / name, functools.partial(read_corpus, folder / name)) for name in ("c.jsonl", "c.xml")]
    for name, reader in READERS.items():
        (folder / f"data {name}").mkdir()
        file = folder / f"data {name}" / reader.name
        file.write_text(reader.good)
        cases.append((file, functools.partial(read_data, reader, file)))
    for _, read in cases:
        with contextlib.suppress(MegabertError):
            read()
    return cases


def read_run(run, step):
    run_checkpoints.list_checkpoints(run)
    run_checkpoints.read(step, groups=("model", "optimizer"))
    load_run(run)


def open_hub(folder):
    for item in open_checkpoint(folder).tensors.values():
        item.read()


def open_nemo(path, config, weights):
    pack(path, {"model_config.yaml": config.read_bytes(), "model_weights.ckpt": weights})
    open_checkpoint(path)


def read_corpus(file):
    list(read_documents(file, max_mb=1))


def read_data(reader, file):
    reader.read(file.parent, file.read_bytes())


def write_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    flags = {"special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = [flags | {"id": 7, "content": "[E1]"}, flags | {"id": 8, "content": "[E2]"}]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "lowercase": True, "handle_chinese_chars": True}
    pipeline = {
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(words)},
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(pipeline))
    decoder = {str(token["id"]): {key: token[key] for key in (*flags, "content")} for token in added}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"[E1]": 7, "[E2]": 8}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}})
    )


def write_shards(folder, hub):
    shutil.copytree(hub, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = [key for key in _header(folder / "model-00001-of-00001.safetensors") if key != "__metadata__"]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _header(file):
    data = file.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def run(state, random):
    file, read = random.choice(state)
    original = file.read_bytes()
    manifest = file.parent / run_checkpoints.MANIFEST
    seal = manifest.read_bytes() if manifest.exists() else None
    try:
        file.write_bytes(variant(file, original, random))
        if seal is not None and file.suffix == ".json":
            reseal(file, manifest)
        read()
        result = "read"
    except MegabertError as error:
        str(error).encode("utf-8", "backslashreplace")
        result = "refused"
    except BaseException as error:
        error.add_note(f"{file.parent.name}/{file.name}: {file.read_bytes()[:150]!r}")
        raise
    finally:
        file.write_bytes(original)
        if seal is not None:
            manifest.write_bytes(seal)
    return f"{file.suffix[1:] or 'text'}: {result}"


def variant(file, original, random):
    if random.random() < 0.25:
        return raw(original, random)
    if file.suffix in (".json", ".yaml"):
        document = json.loads(original) if file.suffix == ".json" else yaml.safe_load(original)
        document.pop("sha256", None) if isinstance(document, dict) else None
        document = changed(document, random)
        if file.suffix == ".yaml":
            return yaml.dump(document).encode("utf-8", "replace")
        return json.dumps(document).encode()
    if file.suffix == ".jsonl":
        lines = original.splitlines()
        at = random.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), random)).encode()
        return b"\n".join(lines)
    return damaged(original, random)


def reseal(file, manifest):
    """Make the manifest fit the changed file, or the changed manifest fit itself."""
    try:
        document = json.loads(manifest.read_bytes())
        if file != manifest and file.name in document["files"]:
            document["files"][file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
        document.pop("sha256", None)
        manifest.write_bytes(sealed(document))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        pass  # what cannot be sealed stays as it is
