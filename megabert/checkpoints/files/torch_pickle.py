"""Read pickles of `torch.save` as data: calls that rebuild tensors become `LazyTensor`s.

The tensors' storages have no bytes yet: `Storages` lists them by key, and the reader of the file format sets the source
of each.
Source: torch/serialization.py and torch/_utils.py in https://github.com/pytorch/pytorch
"""

from dataclasses import dataclass

import torch

from .lazy_tensor import MOST_DIMS, LazyTensor, Region, Storage, StoragePart
from .pickle_reader import Call, Global, Name, Pickle, Record, read_pickle


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
# Those of typed storages, and newer ones, whose storages are untyped
_DTYPES = {
    *_STORAGE_TYPES.values(),
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
}
_VALUES: dict[Name, object] = {
    **{(module, name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items() for module in _STORAGE_MODULES},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
    ("torch", "half"): torch.float16,
    # Classes without data of their own
    ("torch", "Tensor"): Global("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"): Global("torch.nn.parameter", "Parameter"),
}


def _rebuild_tensor(arguments: tuple[object, ...]) -> object:
    """Rebuild a tensor from (storage, offset, shape, stride[, requires_grad, hooks[, metadata]])."""
    match arguments:
        case (part, offset, shape, stride, *rest) if not any(rest[2:]):
            return _tensor(part, None, offset, shape, stride)
    raise ValueError("too few arguments, or a conjugate or negative bit, which is not read.")


def _rebuild_tensor_v3(arguments: tuple[object, ...]) -> object:
    """Rebuild a tensor of an untyped storage: its dtype is the argument after the hooks."""
    match arguments:
        case (part, offset, shape, stride, _, _, torch.dtype() as dtype, *metadata) if not any(metadata):
            return _tensor(part, dtype, offset, shape, stride)
    raise ValueError("too few arguments, or a conjugate or negative bit, which is not read.")


def _tensor(part: object, dtype: torch.dtype | None, offset: object, shape: object, stride: object) -> LazyTensor:
    part = StoragePart(part, 0, part.num_items) if isinstance(part, Storage) else part
    match part, offset, shape, stride:
        case StoragePart(storage, start, num_items), int(), tuple() | list(), tuple() | list():
            if max(len(shape), len(stride)) > MOST_DIMS:
                raise ValueError(f"a shape of {len(shape)} dims with a stride of {len(stride)}.")
            dtype = dtype or storage.dtype
            first = start * storage.dtype.itemsize + offset * dtype.itemsize
            tensor = LazyTensor(dtype, tuple(shape), tuple(stride), storage, first)
            if offset < 0 or tensor.end > (start + num_items) * storage.dtype.itemsize:
                raise ValueError(f"a tensor of shape {tensor.shape} reaches outside its part of a storage.")
            return tensor
    raise ValueError("its arguments are not a storage, an offset, a shape and a stride.")


def _rebuild_with_type(arguments: tuple[object, ...]) -> object:
    """Rebuild a tensor from (function, class, arguments, attributes). The attributes are dropped."""
    match arguments:
        case (Global(module, name), _, tuple() as inner, _) if (module, name) in _TENSOR_CALLS:
            return _TENSOR_CALLS[module, name](inner)
    return Record("torch._tensor", "_rebuild_from_type_v2", arguments)


def _rebuild_parameter(arguments: tuple[object, ...]) -> object:
    """Return the tensor from (tensor, requires_grad, hooks[, attributes])."""
    if not arguments:
        raise ValueError("its tensor is missing.")
    return arguments[0]


def _size(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (tuple() | list() as dims,):
            return tuple(dims)
    raise ValueError("its argument is not a sequence.")


_TENSOR_CALLS: dict[Name, Call] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
}
_CALLS: dict[Name, Call] = {
    **_TENSOR_CALLS,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_type,
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_with_type,  # PyTorch before 1.9
    ("torch", "Size"): _size,
}


_UNKNOWN_REFERENCE = "it refers to an object outside the pickle in a way that torch.save does not."


def _view(storage: Storage, view: list[object]) -> Storage | StoragePart:
    match view:
        case [] | [None]:
            return storage
        case [(_, int() as start, int() as length)]:
            if not 0 <= start <= start + length <= storage.num_items:
                raise ValueError(f"a view of items {start} to {start + length} in a storage of {storage.num_items}.")
            return StoragePart(storage, start, length)
    raise ValueError(_UNKNOWN_REFERENCE)


class Storages:
    """The storages that a pickle refers to, by key; their bytes are located after the pickle has been read."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def resolve(self, identity: object) -> object:
        """Resolve a persistent id of torch to a storage, a part of one, or the name of a module's class."""
        match identity:
            case ("storage", _StorageType(dtype), str() as key, str(), int() as num_items, *view):
                return _view(self._storage(key, dtype, num_items), view)
            case ("module", Global() as module, _, _):
                return module
        raise ValueError(_UNKNOWN_REFERENCE)

    def _storage(self, key: str, dtype: torch.dtype, num_items: int) -> Storage:
        storage = self.by_key.setdefault(key, Storage(key, dtype, num_items))
        if (storage.dtype, storage.num_items) != (dtype, num_items) or not 0 <= num_items < 2**60:
            raise ValueError(f"storage {key[:40]!r} has conflicting dtypes or sizes, or an impossible size.")
        return storage


def load_pickle(data: bytes | Region, source: str, offset: int, storages: Storages) -> Pickle:
    """Read the one pickle that begins at `offset`; `storages` collects the storages of its tensors."""
    return read_pickle(data, source=source, offset=offset, calls=_CALLS, values=_VALUES, persistent_id=storages.resolve)
