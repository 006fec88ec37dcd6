"""What onnxruntime allocates for a run, counted by an allocator of ours in the place of its arena.

Python has no such door, so the functions of onnxruntime's C interface are called through ctypes, by their
place in its table (which never changes between versions). The sizes are those that its arena is asked for.
"""

import ctypes
from pathlib import Path
from typing import Any

import onnxruntime

_PLACES = {
    "GetErrorMessage": 2, "CreateEnv": 3, "CreateSessionFromArray": 8, "Run": 9, "CreateSessionOptions": 10,
    "SetIntraOpNumThreads": 24, "SessionGetInputTypeInfo": 33, "SessionGetInputName": 36,
    "SessionGetOutputCount": 31, "SessionGetOutputName": 37, "CreateTensorWithDataAsOrtValue": 49,
    "CastTypeInfoToTensorInfo": 55, "GetDimensionsCount": 61, "GetDimensions": 62, "CreateCpuMemoryInfo": 69,
    "GetAllocatorWithDefaultOptions": 78, "ReleaseSession": 95, "ReleaseValue": 96,
    "AddSessionConfigEntry": 130, "RegisterAllocator": 176,
}  # fmt: skip
_API_VERSION, _FLOAT, _WARNING = 22, 1, 3
_P = ctypes.c_void_p
_ALLOCATE = ctypes.CFUNCTYPE(_P, _P, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, _P, _P)
_INFO = ctypes.CFUNCTYPE(_P, _P)


class _Base(ctypes.Structure):
    _fields_ = (("get_api", ctypes.CFUNCTYPE(_P, ctypes.c_uint32)), ("version", _P))


class _Allocator(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32), ("allocate", _ALLOCATE), ("free", _FREE), ("info", _INFO),
        ("reserve", _ALLOCATE),
    )  # fmt: skip


class CountedArena:
    """An environment of onnxruntime with a counting allocator; one per process."""

    def __init__(self) -> None:
        library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
        get_base = ctypes.CDLL(str(library)).OrtGetApiBase
        get_base.restype = ctypes.POINTER(_Base)
        self._table = ctypes.cast(get_base().contents.get_api(_API_VERSION), ctypes.POINTER(_P))
        self._kept: dict[int, tuple[int, Any]] = {}  # address -> bytes, buffer
        self._now = self._peak = 0
        self._memory = self._new("CreateCpuMemoryInfo", 0, 0)
        self._allocator = _Allocator(
            _API_VERSION, _ALLOCATE(self._allocate), _FREE(self._free), _INFO(lambda _: self._memory.value),
            _ALLOCATE(self._allocate),
        )  # fmt: skip
        self._environment = self._new("CreateEnv", _WARNING, _text(b"counted"))
        self._call("RegisterAllocator", self._environment, ctypes.addressof(self._allocator))

    def run_bytes(self, model: bytes) -> int:
        """Most bytes in use at once during the third run of a model (one float input of fixed shape, batch 1)
        at onnxruntime's default settings and one thread; weights and the input are not among them."""
        options = self._new("CreateSessionOptions")
        self._call("SetIntraOpNumThreads", options, 1)
        self._call("AddSessionConfigEntry", options, _text(b"session.use_env_allocators"), _text(b"1"))
        session = self._new("CreateSessionFromArray", self._environment, _text(model), len(model), options)
        default = self._new("GetAllocatorWithDefaultOptions")
        information = self._new("CastTypeInfoToTensorInfo", self._new("SessionGetInputTypeInfo", session, 0))
        rank = self._new("GetDimensionsCount", information).value
        shape = (ctypes.c_int64 * rank)()
        self._call("GetDimensions", information, ctypes.addressof(shape), rank)
        elements = 1
        for axis in range(rank):
            shape[axis] = max(1, shape[axis])
            elements *= shape[axis]
        values = (ctypes.c_float * elements)()
        tensor = self._new(
            "CreateTensorWithDataAsOrtValue", self._memory, ctypes.addressof(values), 4 * elements,
            ctypes.addressof(shape), rank, _FLOAT,
        )  # fmt: skip
        count = self._new("SessionGetOutputCount", session).value
        names = (_P * 1)(self._new("SessionGetInputName", session, 0, default).value)
        wanted = (_P * count)(
            *(self._new("SessionGetOutputName", session, i, default).value for i in range(count))
        )
        for _ in range(3):
            before = self._peak = self._now
            made, given = (_P * count)(), (_P * 1)(tensor.value)
            self._call(
                "Run", session, 0, ctypes.addressof(names), ctypes.addressof(given), 1,
                ctypes.addressof(wanted), count, ctypes.addressof(made),
            )  # fmt: skip
            for value in made:
                self._release("ReleaseValue", value)
        found = self._peak - before
        self._release("ReleaseSession", session.value)
        return found

    def _allocate(self, _: int, size: int) -> int:
        buffer = ctypes.create_string_buffer(size + 64)
        address = -(-ctypes.addressof(buffer) // 64) * 64
        size = -(-size // 256) * 256  # as the arena rounds
        self._kept[address] = (size, buffer)
        self._now += size
        self._peak = max(self._peak, self._now)
        return address

    def _free(self, _: int, address: int | None) -> None:
        if address is not None:
            self._now -= self._kept.pop(address)[0]

    def _call(self, name: str, *arguments: Any) -> None:
        status = ctypes.CFUNCTYPE(_P, *[_P] * len(arguments))(self._table[_PLACES[name]] or 0)(*arguments)
        if status:
            told = ctypes.CFUNCTYPE(_P, _P)(self._table[_PLACES["GetErrorMessage"]] or 0)(status)
            raise RuntimeError(ctypes.string_at(told).decode())

    def _new(self, name: str, *arguments: Any) -> Any:
        made = _P()
        self._call(name, *arguments, ctypes.addressof(made))
        return made

    def _release(self, name: str, value: int | None) -> None:
        ctypes.CFUNCTYPE(None, _P)(self._table[_PLACES[name]] or 0)(value)


def _text(value: bytes) -> ctypes.c_void_p:
    return ctypes.cast(ctypes.c_char_p(value), _P)
