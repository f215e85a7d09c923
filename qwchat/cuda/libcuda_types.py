"""Types and signatures of the functions of libcuda, as `cuda.h` declares them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p

HANDLE, ADDRESS = c_void_p, c_uint64
PROGRAMMATIC_STREAM_SERIALISATION = 6  # CUlaunchAttributeID

# CUjit_option
JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_BYTES = 5, 6

FUNCTION_MAX_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute
STREAM_NON_BLOCKING = 1  # CUstream_flags
EVENT_DEFAULT, EVENT_DISABLE_TIMING = 0, 2  # CUevent_flags
CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode


class LaunchAttribute(ctypes.Structure):
    """`CUlaunchAttribute`: 72 bytes, of which the value is a union of 64 bytes that begins with an int here."""

    _fields_ = [
        ("id", c_int),
        ("pad", c_int),
        ("value", c_int),
        ("rest", c_ubyte * 60),
    ]


class LaunchConfig(ctypes.Structure):
    """`CUlaunchConfig`."""

    _fields_ = [
        ("grid_x", c_uint),
        ("grid_y", c_uint),
        ("grid_z", c_uint),
        ("block_x", c_uint),
        ("block_y", c_uint),
        ("block_z", c_uint),
        ("shared_bytes", c_uint),
        ("stream", HANDLE),
        ("attributes", POINTER(LaunchAttribute)),
        ("attribute_count", c_uint),
    ]


_PARAMETERS = POINTER(c_void_p)

SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(HANDLE), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (HANDLE,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(ADDRESS), c_size_t),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (ADDRESS, c_void_p, c_size_t, HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, ADDRESS, c_size_t, HANDLE),
    "cuMemcpyDtoDAsync_v2": (ADDRESS, ADDRESS, c_size_t, HANDLE),
    "cuMemsetD8Async": (ADDRESS, c_ubyte, c_size_t, HANDLE),
    "cuModuleLoadDataEx": (POINTER(HANDLE), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (HANDLE,),
    "cuModuleGetFunction": (POINTER(HANDLE), HANDLE, c_char_p),
    "cuFuncSetAttribute": (HANDLE, c_int, c_int),
    "cuLaunchKernel": (HANDLE, *6 * (c_uint,), c_uint, HANDLE, _PARAMETERS, _PARAMETERS),
    "cuLaunchKernelEx": (POINTER(LaunchConfig), HANDLE, _PARAMETERS, _PARAMETERS),
    "cuStreamCreate": (POINTER(HANDLE), c_uint),
    "cuStreamDestroy_v2": (HANDLE,),
    "cuStreamSynchronize": (HANDLE,),
    "cuStreamQuery": (HANDLE,),
    "cuStreamWaitEvent": (HANDLE, HANDLE, c_uint),
    "cuEventCreate": (POINTER(HANDLE), c_uint),
    "cuEventDestroy_v2": (HANDLE,),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventSynchronize": (HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), HANDLE, HANDLE),
    "cuStreamBeginCapture_v2": (HANDLE, c_int),
    "cuStreamEndCapture": (HANDLE, POINTER(HANDLE)),
    "cuGraphDestroy": (HANDLE,),
    "cuGraphInstantiateWithFlags": (POINTER(HANDLE), HANDLE, c_ulonglong),
    "cuGraphExecDestroy": (HANDLE,),
    "cuGraphLaunch": (HANDLE, HANDLE),
}
"""Name in the library -> types of the parameters. Each function returns a code (CUresult)."""
