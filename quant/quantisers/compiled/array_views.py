"""Arrays at given addresses, for functions that take only 64-bit integers.

They are intrinsics because a function cannot return an array without Numba's runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native.backend import intrinsic, make_array, populate_array, types


def _array_at(kind: Any) -> Callable[..., Any]:
    """Return an intrinsic that makes a C-contiguous array of type `kind` from an address and a shape."""

    @intrinsic
    def array_at(typing: Any, address: Any, shape: Any) -> Any:
        array_type = types.Array(kind, len(shape), "C")

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address, shape = values
            sizes = [builder.extract_value(shape, axis) for axis in range(array_type.ndim)]
            item = context.get_constant(types.intp, kind.bitwidth // 8)
            strides = [item]
            for size in reversed(sizes[1:]):
                strides.insert(0, builder.mul(strides[0], size))
            array = make_array(array_type)(context, builder)
            data = builder.inttoptr(address, array.data.type)
            populate_array(array, data=data, shape=sizes, strides=strides, itemsize=item, meminfo=None)
            return array._getvalue()

        return array_type(types.int64, types.UniTuple(types.int64, len(shape))), generate

    return array_at


f32_at, f64_at, u8_at, i8_at = map(_array_at, (types.float32, types.float64, types.uint8, types.int8))
