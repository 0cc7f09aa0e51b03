"""CUDA C++ from a string to a kernel, with what torch brings along: NVRTC and the driver.

Nothing is installed for it, no compiler and no toolkit; torch's own wrapper of NVRTC is private and wants
the toolkit's headers. Every failure is a `NoKernel`, and the caller takes its torch path.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SIXTEEN_BITS = 1  # CU_TENSOR_MAP_DATA_TYPE_UINT16
_SWIZZLE_128 = 3  # CU_TENSOR_MAP_SWIZZLE_128B
_PROMOTE_256 = 3  # CU_TENSOR_MAP_L2_PROMOTION_L2_256B
_CLUSTER = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class NoKernel(Exception):
    """This machine, or this shape, has no kernel; the message says why in one line."""


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Kernel:
    """One kernel of a loaded module.

    Args:
        threads: per block.
        shared: bytes of dynamic shared memory per block.
        cluster: blocks per cluster, along the grid's first axis.
    """

    def __init__(self, handle: ctypes.c_void_p, threads: int, shared: int, cluster: int) -> None:
        self.handle, self.threads, self.shared, self.cluster = handle, threads, shared, cluster
        if shared > 48 * 1024:
            _driver("cuFuncSetAttribute", handle, _SHARED_MEMORY, shared)

    def launch(self, grid: tuple[int, int, int], *args: Any) -> None:
        """Launch on the current stream. `args` are ctypes values and tensors (their addresses)."""
        held = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(a) for a in held))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _driver("cuLaunchKernel", self.handle, *grid, self.threads, 1, 1, self.shared, stream, pointers, None)

    def clusters(self) -> int:
        """How many clusters run at once on this card."""
        attribute = _Attribute(id=_CLUSTER)
        attribute.value[:3] = (self.cluster, 1, 1)
        launch = _Launch(
            (self.cluster, 1, 1), (self.threads, 1, 1), self.shared, None, ctypes.pointer(attribute), 1
        )
        count = ctypes.c_int()
        _driver("cuOccupancyMaxActiveClusters", ctypes.byref(count), self.handle, ctypes.byref(launch))
        return count.value


def build(source: str, kernels: Mapping[str, tuple[int, int, int]]) -> dict[str, Kernel]:
    """Compile for the current device and load.

    Args:
        kernels: name -> (threads, bytes of shared memory, blocks per cluster).

    Raises:
        NoKernel: no NVRTC, or it does not take the source.
    """
    major, minor = torch.cuda.get_device_capability()
    binary = _compile(source, f"--gpu-architecture=sm_{major}{minor}a")
    torch.cuda.current_stream()  # there is a context from here on
    module = ctypes.c_void_p()
    _driver("cuModuleLoadData", ctypes.byref(module), binary)
    built = {}
    for name, shape in kernels.items():
        handle = ctypes.c_void_p()
        _driver("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
        built[name] = Kernel(handle, *shape)
    return built


def tensor_map(tensor: torch.Tensor, box: tuple[int, ...]) -> ctypes.Array[ctypes.c_byte] | None:
    """A CUtensorMap of a 16-bit `tensor` of 3 to 5 axes, for boxes of `box` in the 128-byte swizzle.

    What lies outside the tensor is read as 0. None where its rows are not at multiples of 16 bytes.

    Args:
        box: sizes along the tensor's axes; the last is at most 64.
    """
    axes = tensor.dim()
    # A stride along an axis of one is never taken, and may be any number.
    steps = [2 * (tensor.stride(n) if tensor.shape[n] > 1 else 8) for n in range(axes - 1)]
    if tensor.stride(-1) != 1 or tensor.data_ptr() % 16 or any(step % 16 for step in steps):
        return None
    room = (ctypes.c_byte * 192)()
    at = -ctypes.addressof(room) % 64
    _driver(
        "cuTensorMapEncodeTiled",
        ctypes.byref(room, at),
        _SIXTEEN_BITS,
        axes,
        ctypes.c_void_p(tensor.data_ptr()),
        (ctypes.c_uint64 * axes)(*reversed(tensor.shape)),
        (ctypes.c_uint64 * (axes - 1))(*reversed(steps)),
        (ctypes.c_uint32 * axes)(*reversed(box)),
        (ctypes.c_uint32 * axes)(*[1] * axes),
        0,
        _SWIZZLE_128,
        _PROMOTE_256,
        0,
    )
    return (ctypes.c_byte * 128).from_buffer_copy(room, at)


def _compile(source: str, *options: str) -> bytes:
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = ("--std=c++17", "--device-as-default-execution-space", *options)  # lambdas are the device's
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(given), given)
    get = (
        ("nvrtcGetProgramLogSize", "nvrtcGetProgramLog") if failed else ("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    )
    getattr(nvrtc, get[0])(program, ctypes.byref(size))
    out = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, get[1])(program, out)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        first = next((line for line in out.value.decode().splitlines() if "error" in line), "no log")
        raise NoKernel(f"NVRTC does not compile the kernel: {first.strip()}")
    return out.raw


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    major = (torch.version.cuda or "0").split(".")[0]
    beside = Path(torch.__file__).parent.parent / "nvidia"
    for name in (f"nvrtc-builtins.so.{torch.version.cuda}", f"nvrtc.so.{major}", "nvrtc.so"):
        for path in [f"lib{name}", *map(str, beside.glob(f"*/lib/lib{name}"))]:
            try:
                library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            if hasattr(library, "nvrtcCreateProgram"):
                return library
            break
    raise NoKernel("torch brings no NVRTC along")


def _driver(name: str, *args: Any) -> None:
    status = getattr(_cuda(), name)(*args)
    if status:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorString(status, ctypes.byref(text))
        raise NoKernel(f"{name}: {(text.value or b'unknown').decode()}")


@functools.cache
def _cuda() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoKernel("no CUDA driver") from error
