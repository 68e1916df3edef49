"""Quantities as people read them: bytes and FLOPs with their prefixes."""


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.3g} {unit}"
        value /= base
    return f"{value:,.3g} {units[-1]}"


def size(count: int) -> str:
    """Bytes, with binary prefixes."""
    return _scaled(float(count), 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def flops(count: int) -> str:
    return _scaled(float(count), 1000.0, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
