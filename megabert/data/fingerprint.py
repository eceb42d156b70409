"""Fingerprint of training data: a hash of token ids and targets, to detect on resuming that the data changed."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from .packing import TAUGHT, Features, LazyFeatures, ResampledFeatures


def fingerprint(features: Sequence[Features], teacher: str = "") -> str:
    """Hash token ids and targets of the training data, to detect on resuming that they changed.

    Not a teacher's logits, which are other numbers on another device, but its digest.
    """
    if isinstance(features, ResampledFeatures):
        return f"{features.fingerprint()} {teacher}".rstrip()
    if isinstance(features, LazyFeatures) and features.kept_fingerprint and not teacher:
        return features.kept_fingerprint
    digest = hashlib.sha256(teacher.encode())
    for item in features:
        for data in hashed_bytes(item):
            digest.update(data)
    return digest.hexdigest()


def hashed_bytes(item: Features) -> Iterator[bytes]:
    """Return what a sequence adds to the hash of those before it."""
    yield np.asarray(item.token_ids, dtype=np.int64).tobytes()
    for targets in (item.targets, item.token_targets):
        for name in sorted(targets.keys() - TAUGHT):
            yield np.asarray(targets[name]).tobytes()
