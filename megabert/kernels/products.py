"""Matrix products in 16 bits by the fastest of the kernels that cuBLASLt suggests for their sizes, by measurement.

cuBLAS takes the first suggestion, which on an H200 is up to a fifth slower for products over 1,024 columns. The numbers
are the same: kernels that split the sum are left out. Sizes are measured once a process, the first ones only.
Source: cuBLAS documentation, cublasLtMatmulAlgoGetHeuristic; the numbers below are those of its header.
"""

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_SIZES = 4  # of batches whose products are measured; others are left to cuBLAS
NUM_SUGGESTIONS, ROUNDS, CALLS = 16, 3, 3
WORKSPACE = 32 * 2**20
SMALLEST = 2**32  # multiplications; smaller products end before it matters
CLEARLY = 0.985
HOPPER = 9  # the compute capability where it was measured
TYPES = {torch.bfloat16: 14, torch.float16: 2}
FLOAT_32, COMPUTE_32 = 0, 68
TRANSPOSE_FIRST, TRANSPOSE_SECOND, EPILOGUE, BIAS_POINTER, BIAS_TYPE = 3, 4, 7, 8, 26  # of a product's description
ADD_BIAS, MAX_WORKSPACE, SPLITS = 4, 1, 2


class _Suggestion(ctypes.Structure):
    _fields_ = (
        ("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float),
        ("reserved", c_int * 4),
    )  # fmt: skip


class _Product:
    """A product of two matrices of given sizes and orders, with a kernel; on one GPU."""

    def __init__(self, library: ctypes.CDLL, handle: c_void_p, workspace: Tensor) -> None:
        self._library, self._handle, self._workspace = library, handle, workspace
        self._description = c_void_p()
        self._layouts: list[c_void_p] = []
        self._one, self._zero = c_float(1.0), c_float(0.0)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returned status {status}")

    def _describe(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        self._call("cublasLtMatmulDescSetAttribute", self._description, c_int(attribute), byref(value), size)

    def _add_layout(self, matrix: Tensor) -> int:
        """Describe a row-major matrix or its transpose, as column-major; returns whether to transpose it."""
        is_row_major = matrix.stride(1) == 1
        rows, columns = reversed(matrix.shape) if is_row_major else matrix.shape
        self._layouts.append(c_void_p())
        sizes = c_uint64(rows), c_uint64(columns), c_int64(matrix.stride(0 if is_row_major else 1))
        self._call("cublasLtMatrixLayoutCreate", byref(self._layouts[-1]), c_int(TYPES[matrix.dtype]), *sizes)
        return int(not is_row_major)

    def suggest(self, first: Tensor, second: Tensor, bias: Tensor | None, out: Tensor) -> list[Any]:
        """Return the kernels that the library suggests, without those that split the sum."""
        self._call("cublasLtMatmulDescCreate", byref(self._description), c_int(COMPUTE_32), c_int(FLOAT_32))
        # In column-major order the operands change places.
        self._describe(TRANSPOSE_FIRST, c_int32(self._add_layout(second)))
        self._describe(TRANSPOSE_SECOND, c_int32(self._add_layout(first)))
        self._add_layout(out)
        if bias is not None:
            self._describe(EPILOGUE, c_int32(ADD_BIAS))
            self._describe(BIAS_TYPE, c_int32(TYPES[bias.dtype]))
            self._describe(BIAS_POINTER, c_void_p(bias.data_ptr()))
        preference, results, count = c_void_p(), (_Suggestion * NUM_SUGGESTIONS)(), c_int()
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        limit = c_int(MAX_WORKSPACE), byref(c_uint64(WORKSPACE)), c_size_t(8)
        self._call("cublasLtMatmulPreferenceSetAttribute", preference, *limit)
        layouts = *self._layouts, self._layouts[-1]
        request = preference, c_int(NUM_SUGGESTIONS), results, byref(count)
        self._call("cublasLtMatmulAlgoGetHeuristic", self._handle, self._description, *layouts, *request)
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        return [item.algorithm for item in results[: count.value] if item.state == 0 and self._splits(item) == 1]

    def _splits(self, suggestion: Any) -> int:
        value, size = c_int32(), c_size_t()
        result = c_int(SPLITS), byref(value), c_size_t(4), byref(size)
        self._call("cublasLtMatmulAlgoConfigGetAttribute", byref(suggestion.algorithm), *result)
        return value.value

    def run(self, algorithm: Any, first: Tensor, second: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Compute first @ second + bias into `out`."""
        if bias is not None:
            self._describe(BIAS_POINTER, c_void_p(bias.data_ptr()))
        of_second, of_first, of_out = self._layouts
        pointers = [c_void_p(item.data_ptr()) for item in (second, first, out)]
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call(
            "cublasLtMatmul", self._handle, self._description, byref(self._one), pointers[0], of_second, pointers[1],
            of_first, byref(self._zero), pointers[2], of_out, pointers[2], of_out, byref(algorithm),
            c_void_p(self._workspace.data_ptr()), c_size_t(WORKSPACE), stream,
        )  # fmt: skip


class _Products:
    """The products of one GPU that were measured."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._handle = library, c_void_p()
        if self._library.cublasLtCreate(byref(self._handle)):
            raise RuntimeError("cublasLtCreate failed")
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
        self._chosen: dict[Any, tuple[_Product, Any] | None] = {}
        self._num_sizes: dict[Any, int] = defaultdict(int)

    def __call__(self, first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor | None:
        """Compute first @ second + bias, or return None where cuBLAS is as fast."""
        key = (first.shape, first.stride(), second.shape, second.stride(), bias is not None, first.dtype)
        if key not in self._chosen:
            kind = key[2:]
            if torch.cuda.is_current_stream_capturing() or self._num_sizes[kind] >= MAX_SIZES:
                return None
            self._num_sizes[kind] += 1
            self._chosen[key] = self._choose(first, second, bias)
        chosen = self._chosen[key]
        if chosen is None:
            return None
        out = first.new_empty(first.shape[0], second.shape[1])
        chosen[0].run(chosen[1], first, second, bias, out)
        return out

    def _choose(self, first: Tensor, second: Tensor, bias: Tensor | None) -> tuple[_Product, Any] | None:
        product, out = _Product(self._library, self._handle, self._workspace), plain(first, second, bias)
        try:
            suggestions = product.suggest(first, second, bias, out)
        except RuntimeError:
            return None
        usual = partial(plain, first, second, bias)
        best, algorithm = _milliseconds(usual), None
        for suggestion in suggestions:
            milliseconds = _milliseconds(partial(product.run, suggestion, first, second, bias, out))
            if milliseconds < best:
                best, algorithm = milliseconds, suggestion
        if algorithm is None or best > CLEARLY * _milliseconds(usual):  # again: the GPU may have been slower before
            return None
        return product, algorithm


def _milliseconds(run: Callable[[], object]) -> float:
    """Time a call: the fastest of some rounds; infinite where the library refuses it."""
    times = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        for _ in range(ROUNDS):
            run()
            begin.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    except RuntimeError:
        return math.inf
    return min(times)


def is_hopper(device: torch.device) -> bool:
    """Whether kernels run on the kind of GPU on which they were tuned, H100 or H200."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER


_of_devices: dict[int, _Products | None] = {}


def product(first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute first @ second + bias; matrices are row-major or transposed. Has no gradient."""
    size = first.shape[0] * first.shape[1] * second.shape[1]
    if first.is_cuda and first.dtype in TYPES and first.dtype == second.dtype and size >= SMALLEST:
        device = torch.cuda.current_device()
        if device not in _of_devices:
            _of_devices[device] = _open() if is_hopper(first.device) else None
        products = _of_devices[device]
        result = None if products is None else products(first, second, bias)
        if result is not None:
            return result
    return plain(first, second, bias)


def plain(first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute first @ second + bias by cuBLAS."""
    return first @ second if bias is None else torch.addmm(bias, first, second)


def _open() -> _Products | None:
    """Open the library that PyTorch has loaded; None where there is none."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[5] for line in maps if "libcublasLt.so" in line}
        return _Products(ctypes.CDLL(paths.pop())) if paths else None
    except (OSError, RuntimeError):
        return None
