"""Mutations of a small checkpoint in each foreign format: refused, or read as other numbers, within bounds.

Formats without checksums (legacy files, safetensors, JSON) are read where only a number has changed.
"""

import zipfile

import torch

from megabert.checkpoints.open import open_checkpoint
from megabert.errors import MegabertError
from tests.fuzz.bytes import MUTATIONS

NUM, NUM_IN_TESTS = 20_000, 60


def make_files(folder):
    """Write a small network in every format; returns the path of each, by name."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemWriter

    from megabert.checkpoints.convert import Target, convert
    from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
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
    checkpoint = open_checkpoint(path)
    for item in checkpoint.tensors.values():
        item.read()


def files_of(path):
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def prepare(folder):
    """Write the files; returns (checkpoint, file) pairs for each format."""
    torch.set_num_threads(1)
    paths, _ = make_files(folder)
    for path in paths.values():
        read_all(path)  # imports happen before memory is measured
    return {name: [(path, file) for file in files_of(path)] for name, path in paths.items()}


def run(state, random):
    path, file = random.choice(state[random.choice(sorted(state))])
    change = random.choice(MUTATIONS)
    return change_and_read(file, lambda: read_all(path), change, random)


def change_and_read(file, read, change, random):
    """Damage a file, read, and restore it."""
    original = file.read_bytes()
    data = bytearray(original)
    change(data, random)
    if bytes(data) == original:
        return "unchanged"
    file.write_bytes(data)
    try:
        read()
    except MegabertError:
        return "refused"
    except Exception as error:
        error.add_note(f"{change.__name__} of {file.name}")
        raise
    finally:
        file.write_bytes(original)
    return "read"
