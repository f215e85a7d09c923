"""Conversions between types, and arithmetic of halves."""

from __future__ import annotations

import numpy as np

from tests.cuda.interpreter.emitter import VALUE_TYPES
from tests.cuda.interpreter.numbers import flush, odd_sum, saturate

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(value, source, to, options):
    """Return a value of PTX type `source` as PTX type `to`, with the rounding and limits that `options` name.

    Raises:
        NotImplementedError: The conversion is not known.
    """
    rounding = next((each for each in options if each[0] == "r"), "")
    if source == "bf16":
        value, source = bf16_to_float(value), "f32"
    if "ftz" in options and source == "f32":
        value = flush(value)
    if to[0] in "us":
        return _to_integer(value, VALUE_TYPES[to], rounding, source)
    if rounding in _TO_INTEGER:
        value = _TO_INTEGER[rounding](value)
    elif rounding not in ("", "rn") and not _is_exact(source, to):
        value = _directed(value, rounding, to)
    if to == "bf16":
        return float_to_bf16(value)
    out = np.asarray(value).astype(VALUE_TYPES[to])
    out = flush(out) if "ftz" in options and to == "f32" else out
    return saturate(out) if "sat" in options else out


def _is_exact(source, to):
    return source[0] == "f" and int(source[1:]) <= int(to[1:])


def _directed(value, rounding, to):
    """Return a float32 of a float16 or float32 result whose rounding is towards zero."""
    if rounding != "rz" or to not in ("f16", "f32"):
        raise NotImplementedError(f"rounding {rounding} to {to}")
    wide = np.asarray(value, np.float64)
    dtype = VALUE_TYPES[to]
    near = wide.astype(dtype)
    near = np.where(np.isinf(near) & np.isfinite(wide), np.copysign(np.finfo(dtype).max, wide), near).astype(dtype)
    beyond = np.abs(near.astype(np.float64)) > np.abs(wide)
    return np.where(beyond, np.nextafter(near, dtype.type(0)), near).astype(dtype)


def _to_integer(value, dtype, rounding, source):
    """Return integers within the limits of `dtype`; NaN becomes 0."""
    limits = np.iinfo(dtype)
    if source[0] in "us":
        low, high = max(limits.min, np.iinfo(value.dtype).min), min(limits.max, np.iinfo(value.dtype).max)
        return np.clip(value, value.dtype.type(low), value.dtype.type(high)).astype(dtype)
    whole = _TO_INTEGER[rounding](np.asarray(value, np.float64))
    whole = np.where(np.isnan(whole), 0.0, whole)
    inside = np.where((whole > float(limits.min)) & (whole < float(limits.max)), whole, 0.0).astype(dtype)
    inside = np.where(whole >= float(limits.max), dtype.type(limits.max), inside)
    return np.where(whole <= float(limits.min), dtype.type(limits.min), inside).astype(dtype)


def bf16_to_float(bits):
    """Return bfloat16 (16 bits) as float32."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bf16(value):
    """Return the nearest bfloat16 of float32, ties to even, as 16 bits."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def pack_halves(high, low, kind, options):
    """Return two float32 as a pair of halves in 32 bits."""
    if "rn" not in options or set(options) - {"rn"}:
        raise NotImplementedError(f"pair of {kind} with {', '.join(options)}")
    parts = [
        float_to_bf16(v) if kind == "bf16" else np.asarray(v).astype(np.float16).view(np.uint16) for v in (low, high)
    ]
    return parts[0].astype(np.uint32) | (parts[1].astype(np.uint32) << np.uint32(16))


def halves(name, kind, *values):
    """Return the result of an instruction on halves or on pairs of them, in the type that was given."""
    given = values[0].dtype
    shape = np.broadcast_shapes(*(np.shape(value) for value in values))
    raw = [np.ascontiguousarray(np.broadcast_to(value, shape)).view(np.uint16) for value in values]
    if name in ("neg", "abs"):
        out = raw[0] ^ np.uint16(0x8000) if name == "neg" else raw[0] & np.uint16(0x7FFF)
    else:
        wide = [(bf16_to_float(v) if kind == "bf16" else v.view(np.float16)).astype(np.float64) for v in raw]
        out = _rounded(_combine(name, wide), kind)
    return out.view(given).reshape(shape)


def _combine(name, wide):
    if name == "fma":
        return odd_sum(wide[0] * wide[1], wide[2])
    simple = {"add": odd_sum, "sub": lambda a, b: odd_sum(a, -b), "mul": np.multiply, "min": np.fmin, "max": np.fmax}
    return simple[name](*wide)


def _rounded(value, kind):
    """Return float64 (rounded to odd) as bits of halves."""
    if kind == "f16":
        return value.astype(np.float16).view(np.uint16)
    near = value.astype(np.float32)
    # float64 to float32 to bfloat16 would round twice: the first rounding goes to odd.
    bits = near.view(np.int32)
    off = (near != value) & np.isfinite(near) & ((bits & 1) == 0)
    away = np.abs(value) > np.abs(near)
    return float_to_bf16(np.where(off, bits + np.where(away, 1, -1), bits).astype(np.int32).view(np.float32))
