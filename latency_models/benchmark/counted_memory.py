"""The peak memory of a model file, as onnxruntime really takes it: counted, not foretold.

An allocator of ours stands in the place of its arena and adds up what it is asked for. Python has no such
door, so functions of onnxruntime's C interface are called through ctypes, by their place in its table (which
never changes between versions), in a process of its own that ends with the run.
"""

import contextlib
import ctypes
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_PLACES = {
    "GetErrorMessage": 2, "CreateEnv": 3, "CreateSessionFromArray": 8, "Run": 9, "CreateSessionOptions": 10,
    "SetIntraOpNumThreads": 24, "CreateTensorWithDataAsOrtValue": 49, "CreateCpuMemoryInfo": 69,
    "ReleaseValue": 96, "AddSessionConfigEntry": 130, "RegisterAllocator": 176,
}  # fmt: skip
_API_VERSION, _WARNING = 22, 3
_ELEMENTS = {"float": (1, 4), "uint8": (2, 1), "int8": (3, 1), "int32": (6, 4), "int64": (7, 8),
             "bool": (9, 1), "float16": (10, 2), "double": (11, 8)}  # fmt: skip
"""Type of a tensor -> its number in the C interface, and bytes of an element."""
_ROUNDED_TO = 256
"""The arena hands out multiples of so many bytes."""
_SECONDS = 120

_P = ctypes.c_void_p
_ALLOCATE = ctypes.CFUNCTYPE(_P, _P, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, _P, _P)
_INFO = ctypes.CFUNCTYPE(_P, _P)


def counted_bytes(model: bytes) -> int | None:
    """The most bytes that one inference takes at once: inputs, tensors, outputs, and what single operations
    work in; not the weights. The third run on one thread at onnxruntime's default settings (memory patterns
    are on from the second), batch 1, zeros as inputs.

    None where it cannot be counted: an onnxruntime without this interface, or a model that does not run so.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            told = subprocess.run(
                [sys.executable, __file__, str(path)],
                capture_output=True,
                text=True,
                check=True,
                timeout=_SECONDS,
            )
            return int(told.stdout)
    return None


class _Base(ctypes.Structure):
    _fields_ = (("get_api", ctypes.CFUNCTYPE(_P, ctypes.c_uint32)), ("version", _P))


class _Allocator(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32), ("allocate", _ALLOCATE), ("free", _FREE), ("info", _INFO),
        ("reserve", _ALLOCATE),
    )  # fmt: skip


class _Counter:
    """An environment of onnxruntime with a counting allocator; one per process."""

    def __init__(self) -> None:
        import onnxruntime

        library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*"))
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
        """The most bytes in use at once during the third run, the inputs included."""
        import onnxruntime

        options = self._new("CreateSessionOptions")
        self._call("SetIntraOpNumThreads", options, 1)
        self._call("AddSessionConfigEntry", options, _text(b"session.use_env_allocators"), _text(b"1"))
        session = self._new("CreateSessionFromArray", self._environment, _text(model), len(model), options)
        shown = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        sizes, tensors = zip(*map(self._tensor, shown.get_inputs()), strict=True)
        outputs = len(shown.get_outputs())
        given = (_P * len(tensors))(*tensors)
        named = _names([one.name for one in shown.get_inputs()])
        wanted = _names([one.name for one in shown.get_outputs()])
        before = 0
        for _ in range(3):
            before, made = self._now, (_P * outputs)()
            self._peak = before
            self._call(
                "Run", session, 0, ctypes.addressof(named), ctypes.addressof(given), len(tensors),
                ctypes.addressof(wanted), outputs, ctypes.addressof(made),
            )  # fmt: skip
            for value in made:
                ctypes.CFUNCTYPE(None, _P)(self._table[_PLACES["ReleaseValue"]] or 0)(value)
        return self._peak - before + int(sum(sizes))

    def _tensor(self, wanted: Any) -> tuple[int, int]:
        """Bytes and address of a tensor of zeros for an input; sizes that are left open are 1."""
        sizes = [size if isinstance(size, int) and size > 0 else 1 for size in wanted.shape]
        kind, width = _ELEMENTS[wanted.type.removeprefix("tensor(").removesuffix(")")]
        count = math.prod(sizes) * width
        shape = (ctypes.c_int64 * len(sizes))(*sizes)
        values = ctypes.create_string_buffer(count)
        made = self._new(
            "CreateTensorWithDataAsOrtValue", self._memory, ctypes.addressof(values), count,
            ctypes.addressof(shape), len(sizes), kind,
        )  # fmt: skip
        self._kept[ctypes.addressof(values)] = (0, values)
        return count, int(made.value)

    def _allocate(self, _: int, size: int) -> int:
        buffer = ctypes.create_string_buffer(size + 64)
        address = -(-ctypes.addressof(buffer) // 64) * 64
        size = -(-size // _ROUNDED_TO) * _ROUNDED_TO
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
            raise OSError(ctypes.string_at(told).decode())

    def _new(self, name: str, *arguments: Any) -> Any:
        made = _P()
        self._call(name, *arguments, ctypes.addressof(made))
        return made


def _names(names: list[str]) -> Any:
    return (_P * len(names))(*(_text(name.encode()).value for name in names))


def _text(value: bytes) -> ctypes.c_void_p:
    _TEXTS.append(value)  # the interface keeps the address, not the text
    return ctypes.cast(ctypes.c_char_p(value), _P)


_TEXTS: list[bytes] = []

if __name__ == "__main__":
    print(_Counter().run_bytes(Path(sys.argv[1]).read_bytes()))
