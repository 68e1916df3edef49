"""`attend`: the one door to attention. It checks what was asked and picks a backend; it computes nothing itself.

It does not know what a layer is, where keys come from, or why a query has the start it has.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnope.errors import ConfigError, unknown
from rnope.kernels import blockwise, reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute attention, and what it refuses."""

    run: Callable[..., Tensor]
    """``run(q, k, v, window=…, starts=…, rows=…)``; its arguments have passed `attend`'s checks."""
    refusal: Callable[..., ConfigError | None]
    """``refusal(q, window=…, starts=…, rows=…)``: None, or the error that says what is not supported and what to do."""


BACKENDS: dict[str, Backend] = {
    "blockwise": Backend(run=blockwise.attend, refusal=blockwise.refusal),
    "reference": Backend(run=reference.attend, refusal=reference.refusal),
}
"""In order of preference: ``"auto"`` takes the first that does not refuse."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    starts: Tensor | None = None,
    rows: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention, ``softmax(q kᵀ / √d) v`` over the keys that each query sees.

    The query at position p sees key j iff ``j <= p``, and ``p - j < window`` where there is a window, and
    ``j >= start`` where there are starts. Softmax is computed in float32 (float64 for float64). A query that sees
    nothing (padding) gets zeros, and finite gradients.

    Args:
        q: queries [b, h, tq, d].
        k, v: keys and values [b, kv, tk, d]; `kv` divides `h`, and query head i reads head ``i // (h // kv)``.
        window: how many keys a query sees, *itself included*; None for all before it.
        starts: int64 [b, tq], first visible key of each query: left padding, document boundaries.
        rows: int64 [tq], positions of the queries among the keys, in any order. Without it queries are the last `tq`
            positions.
        backend: a name of `BACKENDS`, or ``"auto"``.

    Returns:
        [b, h, tq, d] in q's dtype.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit; an unknown backend, or one that refuses the request.
    """
    _check(q, k, v, window, starts, rows)
    if backend != "auto" and backend not in BACKENDS:
        raise unknown("backend", backend, "attention backend", ["auto", *BACKENDS])
    refused: ConfigError | None = None
    for name in BACKENDS if backend == "auto" else (backend,):
        refused = BACKENDS[name].refusal(q, window=window, starts=starts, rows=rows)
        if refused is None:
            return BACKENDS[name].run(q, k, v, window=window, starts=starts, rows=rows)
    assert refused is not None
    raise refused


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or 0 in x.shape:
            raise ConfigError(f"{name}.shape", tuple(x.shape), "must be [b, h, t, d], none of them 0", "Reshape it.")
    b, h, tq, d = q.shape
    kv, tk = k.shape[1:3]
    if k.shape != (b, kv, tk, d) or v.shape != k.shape:
        shapes = (tuple(k.shape), tuple(v.shape))
        raise ConfigError("k, v", shapes, f"must both be [{b}, kv, tk, {d}] to go with q", "Give them one shape.")
    if h % kv:
        raise ConfigError("k.shape[1]", kv, f"must divide the number of query heads, {h}", "Use a divisor.")
    dtypes, devices = {x.dtype for x in (q, k, v)}, {x.device for x in (q, k, v)}
    if len(dtypes) > 1 or not q.is_floating_point():
        raise ConfigError("q, k, v", dtypes, "must have one floating dtype", "Cast them to q's with .to(q.dtype).")
    for index in (starts, rows):
        if index is not None:
            devices.add(index.device)
    if len(devices) > 1:
        raise ConfigError("q, k, v, starts, rows", devices, "must be on one device", "Move them to q's.")
    if window is not None and window < 1:
        raise ConfigError(
            "window",
            window,
            "must be at least 1, since it counts the query itself",
            "Use 1 or more, or None for full attention.",
        )
    if starts is not None and (starts.shape != (b, tq) or starts.dtype != torch.int64):
        given = (tuple(starts.shape), starts.dtype)
        raise ConfigError("starts", given, f"must be int64 [{b}, {tq}]", "Give one start for each query.")
    if rows is None:
        if tq > tk:
            raise ConfigError("q.shape[2]", tq, f"more queries than the {tk} keys", "Queries are the last keys' own.")
        return
    if rows.shape != (tq,) or rows.dtype != torch.int64:
        given = (tuple(rows.shape), rows.dtype)
        raise ConfigError("rows", given, f"must be int64 [{tq}]", "Give one position for each query.")
    if rows.device.type == "cpu":  # Elsewhere looking would wait for the device.
        low, high = (int(x) for x in rows.aminmax())
        if low < 0 or high >= tk:
            raise ConfigError(
                "rows", (low, high), f"must lie in 0 … {tk - 1}", "Give positions among the keys, counted from 0."
            )
