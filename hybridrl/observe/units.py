"""Formats numbers for people."""


def duration(seconds: float) -> str:
    """A duration as text: "8 ms", "1.9 s", "4 min 51 s", "3 h 12 min"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def brief(seconds: float) -> str:
    """A duration in at most six characters: "8 ms", "1.9 s", "241 s", "17 min", "3.2 h"."""
    if seconds < 99.5:
        return duration(seconds)
    if seconds < 999.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """A number of bytes in decimal units: "812 B", "1.8 MB", "1.0 TB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return (
                f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 99.5 else f"{num_bytes:.1f} {unit}"
            )
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
