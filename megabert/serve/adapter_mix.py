"""Networks of one base with adapters of their own: their requests share batches."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.packing import Features, pack
from ..inference import by_feature
from ..kernels.cuda_graph import side_stream
from ..model.attention import PackedSequences
from ..model.heads import DualEmbeddingHead
from ..model.lora import base_parameters, lora_config, mix_encoders
from ..torch_session import TorchSession


class AdapterMix:
    """Networks of one base with adapters and heads of their own, whose sequences share a batch."""

    def __init__(self, sessions: Mapping[str, TorchSession]) -> None:
        self._numbers = {name: number for number, name in enumerate(sessions)}
        self._models = [session.model for session in sessions.values()]
        self._device = next(iter(sessions.values())).device
        self._segments = threading.local()  # of the batch that a thread computes
        self._encoder = mix_encoders([model.encoder for model in self._models], self._segments)

    def run(self, parts: Sequence[tuple[str, Sequence[Features]]], max_length: int) -> list[NDArray[np.float32]]:
        """Compute logits of the features of several networks, given by name, as one batch; in their order."""
        features = [item for _, own in parts for item in own]
        ends = np.cumsum([0, *(sum(map(len, own)) for _, own in parts)]).tolist()
        sequences = np.cumsum([0, *(sum(item.num_sequences for item in own) for _, own in parts)]).tolist()
        numbers = [self._numbers[name] for name, _ in parts]
        self._segments.now = list(zip(numbers, ends[:-1], ends[1:], strict=True))
        with side_stream(self._device), torch.inference_mode():
            batch = pack(features, max_length, pad_id=0)  # without a static size nothing is padded
            batch = batch.map(Tensor.pin_memory).to(self._device) if self._device.type == "cuda" else batch
            token_ids_T, position_ids_T, segment_ids_T, cu_seqlens_N1, _, _ = batch.inputs()
            documents = PackedSequences(cu_seqlens_N1, max_length)
            hidden_TD = self._encoder(token_ids_T, position_ids_T, segment_ids_T, documents)
            starts_N = documents.starts()
            outputs = [
                self._models[number].apply_head(hidden_TD[start:end], starts_N[first:last] - start)
                for (number, start, end), first, last in zip(
                    self._segments.now, sequences[:-1], sequences[1:], strict=True
                )
            ]
            arrays = [output.float().cpu().numpy() for output in outputs]
        logits: list[NDArray[np.float32]] = []
        for number, array, (_, own) in zip(numbers, arrays, parts, strict=True):
            if self._models[number].head.is_per_sequence:
                logits += by_feature(array, [item.num_sequences for item in own])
            else:
                logits += np.split(array, np.cumsum([len(item) for item in own])[:-1])
        return logits


def adapter_mixes(sessions: Mapping[str, object]) -> dict[str, AdapterMix]:
    """Find the networks, by name, that are adapters of one base in memory: each group's sequences can share batches."""
    groups: dict[tuple[int, ...], dict[str, TorchSession]] = {}
    for name, session in sessions.items():
        if not isinstance(session, TorchSession) or isinstance(session.model.head, DualEmbeddingHead):
            continue
        if lora_config(session.model) is not None and session.precision != "fp8" and session.world.size == 1:
            key = tuple(id(parameter) for parameter in base_parameters(session.model.encoder).values())
            groups.setdefault(key, {})[name] = session
    mixes: dict[str, AdapterMix] = {}
    for group in groups.values():
        if len({id(session.model.encoder) for session in group.values()}) > 1:
            mixes |= dict.fromkeys(group, AdapterMix(group))
    return mixes
