"""Weights on the device: the stored parts of each tensor, with matrices that share an input stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from quant.formats import PackedTensor, find_format
from quant.formats.format import TILE_ROWS, tile_count
from quant.formats.widening import widen_tiles
from qwchat.cuda.memory import DeviceMemory
from qwchat.cuda.upload import Uploader
from qwchat.model.gpu_memory import DeviceTensor
from qwchat.model.tensor_source import TensorSource

_SCALE_COLUMNS = 32  # the smallest group of columns that shares a scale
_WIDENED_WEIGHTS = 4 << 20  # that are widened together, about 12 MiB with what it takes in between


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix, or some that are stacked, for a kernel of its format.

    Attributes:
        name: of the first tensor.
        format: name of the format.
        rows: rows of all of them, a multiple of 16 except at the end.
        columns: columns.
        tiles: tiles of 16 rows.
        scale_shift: log2 of the groups of 32 columns that share a scale; 0 without groups.
        codes: address of the codes, or of the values in a format without codes.
        scales: address of the scales, or 0.
        zeros: address of the zero points, or 0.
        row_scales: address of the scales of rows, or 0.
    """

    name: str
    format: str
    rows: int
    columns: int
    tiles: int
    scale_shift: int
    codes: int
    scales: int
    zeros: int
    row_scales: int

    @property
    def is_dense(self) -> bool:
        """Whether it is stored as floats, and multiplied with activations that are not quantised."""
        return find_format(self.format).kernel != "integer"

    @property
    def parameters(self) -> dict[str, float]:
        """What kernels take of it."""
        sizes: dict[str, float] = {"columns": self.columns, "tiles": self.tiles}
        if self.is_dense:
            return {"values": self.codes} | sizes
        parts = {name: getattr(self, name) for name in ("codes", "scales", "zeros", "row_scales")}
        return parts | sizes | {"scale_shift": self.scale_shift}


class CudaWeights:
    """All weights that a decoder needs, in one allocation.

    Args:
        memory: where they are allocated.
        tensors: what is uploaded.
        folder: the model that it comes from.
    """

    def __init__(self, memory: DeviceMemory, tensors: Sequence[DeviceTensor], folder: TensorSource) -> None:
        self._tensors, self._folder = tensors, folder
        arrays = [array for tensor in tensors for array in tensor.parts.values()]
        sizes = [array.nbytes for array in arrays]
        allocation = memory.allocate(sum(array.allocated for array in arrays), "weights")
        addresses = zip(arrays, allocation.parts(sizes), strict=True)
        self._addresses = {array.name: address for array, address in addresses}
        self._by_source = {source: tensor for tensor in tensors for source in tensor.sources}

    def upload(self, uploader: Uploader) -> None:
        """Copy all weights from the model to the device."""
        for tensor in self._tensors:
            addresses = {part: self._addresses[array.name] for part, array in tensor.parts.items()}
            for source in tensor.sources:
                for parts in self._pieces(self._folder.tensor(source)):
                    for part, stored in parts.items():
                        uploader.upload(addresses[part], stored)
                        addresses[part] += self._stored_bytes(stored, len(tensor.sources))

    @staticmethod
    def _pieces(packed: PackedTensor) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield the parts as the device stores them: as they are, or some tiles after the other in a wider format."""
        fmt = find_format(packed.format)
        if fmt.widened is None:
            yield packed.parts
            return
        tiles = max(1, _WIDENED_WEIGHTS // (TILE_ROWS * packed.shape[1]))
        for first in range(0, packed.num_tiles, tiles):
            yield widen_tiles(fmt, packed, first, min(first + tiles, packed.num_tiles))

    @staticmethod
    def _stored_bytes(stored: NDArray[Any], sources: int) -> int:
        """Return the bytes that a part of one source takes among stacked ones: vectors are padded to whole tiles."""
        if stored.ndim > 1 or sources == 1:
            return int(stored.nbytes)
        return tile_count(len(stored)) * 16 * int(stored.itemsize)

    def vector(self, name: str) -> int:
        """Return the address of a vector, (n,) f32; 0 if the model has no such tensor."""
        tensor = self._by_source.get(name)
        return 0 if tensor is None else self._addresses[tensor.parts["values"].name]

    def matrix(self, name: str) -> DeviceMatrix:
        """Return the matrix that a tensor is, or is stacked in."""
        tensor = self._by_source[name]
        packed = [self._folder.tensor(source) for source in tensor.sources]
        addresses = {part: self._addresses[array.name] for part, array in tensor.parts.items()}
        first = packed[0]
        groups = max(1, first.group_size // _SCALE_COLUMNS)
        return DeviceMatrix(
            name=tensor.sources[0],
            format=(find_format(first.format).widened or find_format(first.format)).name,
            rows=sum(each.shape[0] for each in packed),
            columns=first.shape[1],
            tiles=sum(tile_count(each.shape[0]) for each in packed),
            scale_shift=groups.bit_length() - 1,
            codes=addresses.get("codes", addresses.get("values", 0)),
            **{part: addresses.get(part, 0) for part in ("scales", "zeros", "row_scales")},
        )

    def matrices(self, names: Sequence[str]) -> list[DeviceMatrix]:
        """Return the matrices that tensors with the same input are stacked in, in order."""
        found: list[DeviceMatrix] = []
        for name in names:
            if not found or self._by_source[name].sources[0] != found[-1].name:
                found.append(self.matrix(name))
        return found
