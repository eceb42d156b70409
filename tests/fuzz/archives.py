"""Hostile zip, tar and gzip archives with the names of checkpoints: nothing is written, time and memory are bounded."""

import gzip
import io
import warnings
import zipfile

import torch
import yaml

from megabert.checkpoints.open import open_checkpoint
from megabert.errors import MegabertError
from tests.checkpoints.files.test_tar_archive import END, HOSTILE, entry, pax
from tests.checkpoints.nemo.test_open_nemo import CONFIG, pack, saved
from tests.fuzz.bytes import damaged

NUM, NUM_IN_TESTS = 500, 12
NAMES = [
    "model_config.yaml", "model_weights.ckpt", "a/data.pkl", "a/data/0", "a/version", "archive/byteorder", "x.pt",
    "release/mp_rank_00/model_optim_rng.pt", "../evil.pt", "/tmp/evil.pt", "a\\b.pt", "\u202ex.pt",
    "model/code/a.py", "a//b",
    "./model_weights.ckpt", "MODEL_CONFIG.YAML", "vocab.txt", "x" * 300, "a/" * 100 + "x", "é.pt", "e\u0301.pt", "",
    ".",
]  # fmt: skip


def any_zip(content, random):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for _ in range(random.choice((1, 2, 3, 5, 2000))):
            info = zipfile.ZipInfo(random.choice(NAMES) or "x")
            info.compress_type = random.choice(
                (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            )
            info.external_attr = random.choice((0, 0o100644, 0o120777, 0o040755, 0o020666, 0o010666)) << 16
            archive.writestr(info, random.choice((content, bytes(10_000), b"", random.randbytes(99))))
    return target.getvalue()


def any_tar(content, random):
    parts = []
    for _ in range(random.choice((1, 2, 3, 5, 2000))):
        kind = random.choice((b"0", b"0", b"0", b"5", b"1", b"2", b"3", b"6", b"L", b"x", b"g", b"S"))
        part = entry(kind, random.choice(NAMES)[:90] or "x", random.choice((0, 3)))
        if random.random() < 0.2:
            part = pax([b"%d path=x\n" % random.choice((9, 10, 99, 0)) for _ in range(random.choice((1, 3000)))]) + part
        parts.append(part)
    return b"".join(parts) + random.choice((END, b"", END[:600]))


def a_bomb(content, random):
    size = random.choice((10**6, 10**7, 10**8))
    if random.random() < 0.5:
        return gzip.compress(bytes(size))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(random.choice(NAMES) or "x", bytes(size))
    return target.getvalue()


def packed_again(content, random):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("release/mp_rank_00/model_optim_rng.pt", content)
    return random.choice((gzip.compress(content), target.getvalue()))


def prepare(folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # zipfile's, about names that occur twice
    weights = saved({"model.x": torch.ones(3)})
    good = pack(folder / "good", {"model_config.yaml": yaml.dump(CONFIG), "model_weights.ckpt": weights})
    nemo = good.read_bytes()
    for data in (nemo, weights, *list(HOSTILE.values())[:5]):
        read(folder / "x", data)
    return folder / "x", nemo, weights


def read(path, data):
    path.write_bytes(data)
    try:
        for item in open_checkpoint(path).tensors.values():
            item.read()
    except MegabertError:
        return "refused"
    return "read"


def run(state, random):
    path, nemo, weights = state
    content = random.choice((nemo, weights))
    kind = random.choice(("known", "zip", "tar", "bomb", "packed", "damaged"))
    data = {
        "known": lambda: damaged(random.choice(list(HOSTILE.values())), random),
        "zip": lambda: any_zip(content, random),
        "tar": lambda: any_tar(content, random),
        "bomb": lambda: a_bomb(content, random),
        "packed": lambda: damaged(packed_again(content, random), random),
        "damaged": lambda: damaged(content, random),
    }[kind]()
    if random.random() < 0.2:
        data = gzip.compress(data)
    before = tree(path.parent)
    result = read(path, data)
    assert tree(path.parent) == before | {path.name}, "something was written"
    return f"{kind}: {result}"


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
