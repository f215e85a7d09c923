"""Packed checkpoints as sources: codes, scales and zero points are read unchanged where a format stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from quant.errors import CheckpointError
from quant.families import expected_tensors, parse_config
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.awq import AwqScheme
from quant.sources.packed.compressed_tensors import CompressedScheme
from quant.sources.packed.gptq import GptqScheme
from quant.sources.packed.matrix import FLOATS, PackedMatrix
from quant.sources.packed.scheme import PackedScheme
from quant.sources.source import QuantisedRows, Rows, Source, TensorInfo, describe_tensors, short_name

SCHEMES: dict[str, type[PackedScheme]] = {
    "gptq": GptqScheme,
    "awq": AwqScheme,
    "compressed-tensors": CompressedScheme,
}
"""Supported forms by the quant_method of quantization_config."""
_KEY = "quantization_config"


class PackedCheckpoint(Source):
    """Checkpoint whose matrices are stored as packed codes. Tensors that are not packed are read as they are.

    Args:
        checkpoint: files of the checkpoint, opened with `integers`. The source closes them.

    Raises:
        CheckpointError: the form of quantisation is not supported.
    """

    def __init__(self, checkpoint: HuggingFaceCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._scheme = _parse_scheme(checkpoint)

    @property
    def path(self) -> Path:
        """Checkpoint folder."""
        return self._checkpoint.path

    @property
    def origin(self) -> Mapping[str, str]:
        """Further entries of the source in the manifest."""
        return self._checkpoint.origin

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the small files, the shard headers and sizes, and a sample of the weights."""
        return self._checkpoint.fingerprint

    @cached_property
    def config(self) -> ModelConfig:
        """Hyperparameters from config.json."""
        return parse_config(self._unquantised_config, str(self._checkpoint.config_file))

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Content of the small files to copy into the model folder. config.json has no quantization_config.

        Raises CheckpointError if the tokenizer is missing, without which a model cannot be used.
        """
        # Indenting nested values could make the text a thousand times as long.
        try:
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in self._unquantised_config.items()]
        except RecursionError as exc:
            raise CheckpointError(f"{self._checkpoint.config_file} is nested too deeply; get the file again") from exc
        config = "{\n" + ",\n".join(lines) + "\n}\n"
        return {**self._checkpoint.files, "config.json": config.encode()}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order. Biases of zeros that the model does not have are left out.

        Raises CheckpointError if the tensors of a module contradict each other or config.json.
        """
        suffix, plain = self._scheme.suffix, self._checkpoint.tensors
        parts = {name for matrix in self._matrices.values() for name in matrix.stored_names}
        tensors: dict[str, TensorInfo] = {}
        for name in plain:
            if name.endswith(suffix):
                name = _weight_name(name, suffix)
                tensors[name] = self._matrices[name].info
            elif name in self._matrices:
                raise CheckpointError(f"{self.path}: tensor {short_name(name)} is stored twice, packed and as it is")
            elif name not in parts and not self._is_extra_bias(name):
                tensors[name] = self._plain_info(name)
        return tensors

    @property
    def quantised(self) -> bool:
        """Whether any tensor is quantised: known without a look at the data, which `tensors` needs."""
        return True

    @property
    def notices(self) -> Sequence[str]:
        """Matrices without a home, one line for each reason."""
        names: dict[str, list[str]] = {}
        for name, matrix in self._matrices.items():
            names.setdefault(matrix.obstacle, []).append(name)
        return [
            f"the codes of {describe_tensors(found)} cannot be kept: {obstacle}"
            for obstacle, found in names.items()
            if obstacle
        ]

    def stored_names(self, name: str) -> Sequence[str]:
        """Return the names of the tensors in the files that tensor `name` is read from."""
        return self._matrices[name].stored_names if name in self._matrices else (name,)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Read rows `start` to `stop`, exclusive, of a matrix (elements of a vector) into new memory."""
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._checkpoint.read(name, start, stop)
        stop = matrix.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= matrix.shape[0]:
            raise CheckpointError(f"rows {start}..{stop} of tensor {name} do not exist; it has {matrix.shape[0]} rows")
        return matrix.read(start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        """Release the memory of rows `start` to `stop`, exclusive. They will not be read again."""
        if name in self._matrices:
            self._matrices[name].release(start, stop)
        else:
            self._checkpoint.release(name, start, stop)

    def close(self) -> None:
        """Close the files."""
        self._checkpoint.close()

    @property
    def _unquantised_config(self) -> dict[str, Any]:
        """Content of config.json without quantization_config: readers of the model must not look for packed tensors."""
        return {key: value for key, value in self._checkpoint.config_values.items() if key != _KEY}

    @cached_property
    def _matrices(self) -> dict[str, PackedMatrix]:
        suffix = self._scheme.suffix
        modules = [name.removesuffix(suffix) for name in self._checkpoint.stored if name.endswith(suffix)]
        if not modules:
            raise CheckpointError(
                f"{self.path}: no tensor is packed, although config.json has a {_KEY}; "
                "one of the two is from another model"
            )
        return {f"{module}.weight": self._scheme.open_matrix(self._checkpoint, module) for module in modules}

    def _is_extra_bias(self, name: str) -> bool:
        """Return whether tensor `name` is a bias of zeros that the model does not have. Some GPTQ tools write them."""
        matrix = self._matrices.get(name.removesuffix(".bias") + ".weight")
        if matrix is None or not name.endswith(".bias") or name in self._expected:
            return False
        fits = self._checkpoint.stored[name].shape == matrix.shape[:1]
        return fits and not self._checkpoint.read(name).any()

    @cached_property
    def _expected(self) -> frozenset[str]:
        return frozenset(expected_tensors(self.config))

    def _plain_info(self, name: str) -> TensorInfo:
        dtype = self._checkpoint.stored[name].dtype
        if dtype not in FLOATS:
            raise CheckpointError(
                f"{self.path}: tensor {short_name(name)} has dtype {dtype} and does not belong to a packed matrix; "
                "download the checkpoint again"
            )
        return self._checkpoint.tensors[name]


def _weight_name(name: str, suffix: str) -> str:
    return name.removesuffix(suffix) + ".weight"


def is_packed(checkpoint: HuggingFaceCheckpoint) -> bool:
    """Return whether config.json has a quantization_config."""
    return checkpoint.config_values.get(_KEY) is not None


def _parse_scheme(checkpoint: HuggingFaceCheckpoint) -> PackedScheme:
    """Return the settings in quantization_config. Raises CheckpointError if they are not supported."""
    fields = JsonFields(
        checkpoint.config_values, str(checkpoint.config_file), CheckpointError, "; give the original checkpoint"
    ).inner(_KEY)
    method = fields.values.get("quant_method")
    if not isinstance(method, str) or method not in SCHEMES:
        *others, last = map(repr, SCHEMES)
        raise fields.invalid(
            f"quant_method {short_repr(method)} is not supported; only {', '.join(others)} and {last} are"
        )
    return SCHEMES[method].parse(fields)
