"""Mutate checkpoints at random: every reader must refuse or read them in bounded time and memory.

`python -m tests.checkpoints.fuzz [FACTOR] [SEED]` makes FACTOR times the mutations of the test and prints counts.
It runs in a process of its own with limited memory, so that a reader that trusts a size in a file fails.
"""

import collections
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

NUM_FLIPS, NUM_MUTATIONS = 2_000, 2_000
SECONDS = 20  # for one file; an intact one takes hundredths
MEMORY = 2**30  # bytes that a reader may use beyond the interpreter's


def make_files(folder):
    """Write a small network in every format; returns the path of each, by name."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemWriter

    from megabert.checkpoints.convert import Target, convert
    from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
    from megabert.checkpoints.open import open_checkpoint
    from tests.checkpoints.networks import VOCABULARY, write

    ours = folder / "ours"
    write(ours, "one layer", vocabulary=VOCABULARY)
    for name, target in {
        "megatron": Target("megatron", ModelParallelLayout(2, 1)),
        "core": Target("megatron-core"),
        "hub": Target("huggingface"),
        "x.nemo": Target("nemo"),
    }.items():
        convert(open_checkpoint(ours), folder / name, target, num_tokens=50, progress=None)
    rank = folder / "core" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(rank, weights_only=False)
    (folder / "legacy").mkdir()
    torch.save(content, folder / "legacy" / "MegatronBERT.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "legacy" / "MegatronBERT.pt", "release/mp_rank_00/model_optim_rng.pt")
    dcp.save(content["model"], storage_writer=FileSystemWriter(folder / "dist"), no_dist=True)
    torch.save({"args": content["args"]}, folder / "dist" / "common.pt")
    return {name: folder / name for name in ("megatron", "core", "hub", "x.nemo", "legacy", "packed.zip", "dist")}, ours


def read_all(path):
    """Open a checkpoint and read all its tensors."""
    from megabert.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(path)
    for item in checkpoint.tensors.values():
        item.read()
    return checkpoint


def files_of(path):
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def flip(data, random_):
    offset = random_.randrange(len(data))
    data[offset] ^= 1 << random_.randrange(8)


def overwrite(data, random_):
    offset = random_.randrange(len(data))
    data[offset : offset + random_.randint(1, 16)] = random_.randbytes(random_.randint(1, 16))


def cut(data, random_):
    del data[random_.randrange(len(data)) :]


def insert(data, random_):
    offset = random_.randrange(len(data))
    data[offset:offset] = random_.randbytes(random_.randint(1, 64))


def remove(data, random_):
    offset = random_.randrange(len(data))
    del data[offset : offset + random_.randint(1, 64)]


def repeat(data, random_):
    offset = random_.randrange(len(data))
    data[offset:offset] = data[offset : offset + random_.randint(1, 512)]


def huge(data, random_):
    offset = random_.randrange(len(data))
    width = random_.choice((4, 8))
    value = random_.choice((2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 0)) % 2 ** (8 * width)
    data[offset : offset + width] = value.to_bytes(width, random_.choice(("little", "big")))


MUTATIONS = (flip, overwrite, cut, insert, remove, repeat, huge)


class TooLongError(Exception):
    """A reader takes too long."""


def _stop(*_):
    raise TooLongError


def change_and_read(file, path, change, random_):
    """Damage a file, read the checkpoint, restore the file; returns "read" or "refused"; raises for a defect."""
    from megabert.errors import MegabertError

    original = file.read_bytes()
    data = bytearray(original)
    change(data, random_)
    if bytes(data) == original:
        return "unchanged"
    file.write_bytes(data)
    signal.alarm(SECONDS)
    try:
        read_all(path)
        return "read"
    except MegabertError:
        return "refused"
    finally:
        signal.alarm(0)
        file.write_bytes(original)


def main(factor=1, seed=0):
    """Run all mutations; returns the number of defects."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _stop)
    random_, started, defects = random.Random(seed), time.monotonic(), []
    folder = Path(tempfile.mkdtemp(prefix="megabert-fuzz-"))
    try:
        paths, ours = make_files(folder)
        for path in (*paths.values(), ours):
            read_all(path)  # imports happen before memory is measured
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        flips = collections.Counter()
        for _ in range(NUM_FLIPS * factor):
            file = random_.choice(files_of(ours))
            flips[change_and_read(file, ours, flip, random_)] += 1
        counts = collections.defaultdict(collections.Counter)
        for number in range(NUM_MUTATIONS * factor):
            name, path = random_.choice(list(paths.items()))
            file, change = random_.choice(files_of(path)), random_.choice(MUTATIONS)
            try:
                counts[name][change_and_read(file, path, change, random_)] += 1
            except (Exception, TooLongError) as error:  # any of these is a defect
                counts[name]["DEFECT"] += 1
                defects.append(f"{number}: {change.__name__} of {file.relative_to(folder)}: {error!r}"[:400])
    finally:
        shutil.rmtree(folder)
    print(f"seed {seed}, {NUM_FLIPS * factor} flips of one bit of our own format: {dict(flips)}")
    for name, counter in sorted(counts.items()):
        print(f"  {name:<12}{dict(sorted(counter.items()))}")
    print(f"{NUM_MUTATIONS * factor} mutations of foreign files, {len(defects)} defects, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    print("\n".join(defects[:20]))
    return len(defects) + flips["read"]


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
