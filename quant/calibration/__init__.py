"""Statistics of the inputs of a model's matrices, which encoders with error feedback use."""

from quant.calibration.moments import Calibration, InputMoments, block_sizes, input_columns, input_of
from quant.calibration.statistics_file import StatisticsFile, open_statistics
from quant.calibration.statistics_layout import StatisticsHeader
from quant.calibration.statistics_writer import StatisticsWriter

__all__ = [
    "Calibration",
    "InputMoments",
    "StatisticsFile",
    "StatisticsHeader",
    "StatisticsWriter",
    "block_sizes",
    "input_columns",
    "input_of",
    "open_statistics",
]
