"""Write small weight files for the tests, and compare megabert's reader with torch's."""

import argparse
import types
import zipfile

import torch

from megabert.checkpoints.files.pickle_reader import Record
from megabert.checkpoints.files.weight_files import LazyTensor, open_file

FORMATS = ("torch-zip", "torch-legacy")


def save(content, path, *, kind="torch-zip", protocol=2):
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "torch-zip")
    return path


def leaves(value, path=()):
    """Yield (path, leaf) for each leaf of nested dicts, lists, tuples and Namespaces."""
    if isinstance(value, (Record, argparse.Namespace, types.SimpleNamespace)):
        value = value.state if isinstance(value, Record) else vars(value)
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        yield path, value
        return
    for key, item in value:
        yield from leaves(item, (*path, key))


def assert_same(ours, theirs):
    ours, theirs = dict(leaves(ours)), dict(leaves(theirs))
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        if isinstance(expected, torch.Tensor):
            tensor = ours[path].read()
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (
                expected.dtype,
                expected.shape,
                expected.stride(),
            )
            assert torch.equal(tensor, expected.detach()), path
            assert ours[path].nbytes == expected.nbytes
        else:
            assert ours[path] == expected, path


def read_all(path):
    opened = open_file(path)
    for _, leaf in leaves(opened.content):
        if isinstance(leaf, LazyTensor):
            leaf.read()
    return opened


def write_zip(path, members, *, method=zipfile.ZIP_STORED, **changes):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path
