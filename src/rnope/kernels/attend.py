"""`attend`: the one door to attention. It checks what was asked and picks a backend; it computes nothing itself.

It does not know what a layer is, where keys come from, or why a query has the start it has.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnope.errors import ConfigError, unknown
from rnope.kernels import blockwise, flex, reference, sdpa, varlen
from rnope.kernels.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute attention, and what it refuses."""

    run: Callable[..., Tensor]
    """``run(q, k, v, window=…, starts=…, rows=…)``; its arguments have passed `attend`'s checks."""
    refusal: Callable[[Request], ConfigError | None]
    """None, or the error that says what is not supported and what to do."""


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(run=sdpa.attend, refusal=sdpa.refusal),
    "varlen": Backend(run=varlen.attend, refusal=varlen.refusal),
    "flex": Backend(run=flex.attend, refusal=flex.refusal),
    "blockwise": Backend(run=blockwise.attend, refusal=blockwise.refusal),
    "reference": Backend(run=reference.attend, refusal=reference.refusal),
}
AUTO = {"cuda": ("sdpa", "varlen", "flex", "blockwise", "reference")}
"""Device -> backends in order of preference: ``"auto"`` takes the first that does not refuse."""
AUTO_ELSEWHERE = ("blockwise", "reference")


def choose(
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    window: int | None,
    head_size: int,
    heads: int,
    kv_heads: int,
    starts: bool = False,
    rows: bool = False,
    grad: bool = False,
    single: bool = False,
) -> str:
    """The backend that ``"auto"`` takes, for plans and reports; asks nothing of a device that is not there.

    Args:
        device, dtype: of queries, keys and values.
        window: as for `attend`; a window that reaches over all keys counts as None.
        head_size, heads, kv_heads: the shape of the layer.
        starts, rows: whether `attend` is given them.
        grad: whether gradients are wanted.
        single: one query for each sequence, as in decoding.
    """
    return _automatic(
        Request(torch.device(device), dtype, window, head_size, heads, kv_heads, starts, rows, grad, single)
    )


_CHOSEN: dict[Request, str] = {}


def _automatic(request: Request) -> str:
    """The choice, made once for each request: a dictionary, since `torch.compile` complains of `lru_cache`."""
    name = _CHOSEN.get(request)
    if name is None:
        names = AUTO.get(request.device.type, AUTO_ELSEWHERE)
        name = next(name for name in names if BACKENDS[name].refusal(request) is None)  # The last refuses nothing.
        if not torch.compiler.is_compiling():  # A compiler that sees this written gives up on the caller, in silence.
            _CHOSEN[request] = name
    return name


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
    if window is not None and window >= k.shape[2]:
        window = None
    _, h, tq, d = q.shape
    request = Request(
        q.device,
        q.dtype,
        window,
        d,
        h,
        k.shape[1],
        starts is not None,
        rows is not None,
        torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        tq == 1 and rows is None,
    )
    if backend == "auto":
        backend = _automatic(request)
    else:
        check_backend(backend)
        if (error := BACKENDS[backend].refusal(request)) is not None:
            raise error
    return BACKENDS[backend].run(q, k, v, window=window, starts=starts, rows=rows)


def check_backend(name: str) -> None:
    """Raise the error that names the nearest backend, unless `name` is one, or ``"auto"``."""
    if name != "auto" and name not in BACKENDS:
        raise unknown("backend", name, "attention backend", ["auto", *BACKENDS])


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, starts: Tensor | None, rows: Tensor | None) -> None:
    """Raise what is wrong. Decoding comes here for each layer of each token, so that what is right costs little."""
    shape, keys = q.shape, k.shape
    for name, size in (("q", shape), ("k", keys)):
        if len(size) != 4 or 0 in size:
            raise ConfigError(f"{name}.shape", tuple(size), "must be [b, h, t, d], none of them 0", "Reshape it.")
    (b, h, tq, d), (_, kv, tk, _) = shape, keys
    if keys != v.shape or keys[0] != b or keys[3] != d:
        shapes = (tuple(keys), tuple(v.shape))
        raise ConfigError("k, v", shapes, f"must both be [{b}, kv, tk, {d}] to go with q", "Give them one shape.")
    if h % kv:
        raise ConfigError("k.shape[1]", kv, f"must divide the number of query heads, {h}", "Use a divisor.")
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or v.dtype != dtype or not dtype.is_floating_point:
        dtypes = {x.dtype for x in (q, k, v)}
        raise ConfigError("q, k, v", dtypes, "must have one floating dtype", "Cast them to q's with .to(q.dtype).")
    if k.device != device or v.device != device or any(x is not None and x.device != device for x in (starts, rows)):
        devices = {x.device for x in (q, k, v, starts, rows) if x is not None}
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
