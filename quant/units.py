"""Format data sizes as text."""

from __future__ import annotations


def data_size(count: float, decimals: int = 1) -> str:
    """Return a byte count in powers of ten, for files, disks and rates: "999 bytes", "1.5 GB", "250 MB".

    Values of 100 and more have no decimals, unless `decimals` is at least 2 (to tell similar sizes apart).
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            whole = unit == "bytes" or (count >= 100 and decimals <= 1)
            return f"{count:.{0 if whole else decimals}f} {unit}"
        count /= 1000
    return f"{count:.{decimals}f} TB"


def binary_size(count: int) -> str:
    """Return a byte count in powers of two, for memory and size limits: "64 KiB", "8 MiB", "1.5 GiB"."""
    step = min(max(0, count.bit_length() - 1) // 10, 3)
    size = count / (1 << 10 * step)
    return f"{size:,.{0 if size.is_integer() else 1}f} {('bytes', 'KiB', 'MiB', 'GiB')[step]}"
