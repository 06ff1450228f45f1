"""What sessions and batches have in common: results, callbacks, numbers by name."""

from __future__ import annotations

from ctypes import byref, c_double, c_int32, c_void_p
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from . import _abi
from ._abi import Progress, UsageError, call
from ._guard import BlockingCall

ProgressCallback = Callable[[Progress], bool]


class Piece(NamedTuple):
    """A token and the whole characters that it completes, often none."""

    token: int
    text: str


class Generation(NamedTuple):
    """reason: "length", "end of text", "stopped" (by callback or cancel) or "context full"."""

    tokens: List[int]
    text: str
    reason: str


PieceCallback = Callable[[Piece], bool]
REASONS = ("length", "end of text", "stopped", "context full")


def c_tokens(tokens: Sequence[int]) -> Any:
    for index, token in enumerate(tokens):
        if not 0 <= token < 1 << 31:
            raise UsageError(f"token {token} at index {index}: expected 0 to {2**31 - 1}")
    return (c_int32 * len(tokens))(*tokens)


def reporter(progress: Optional[ProgressCallback]) -> Tuple[BlockingCall, Any]:
    guard = BlockingCall()

    # Even without a callback: this is where Ctrl-C gets its turn.
    @_abi.PROGRESS_CALLBACK
    def report(_: Any, p: Any) -> int:
        seen = Progress(p[0].total, p[0].cached, p[0].processed, p[0].elapsed)
        return guard.run(lambda: progress is None or bool(progress(seen)))

    return guard, report


def numbers(function: str, handle: c_void_p, names: Iterable[bytes]) -> Dict[str, float]:
    """What a function of the C interface says under these names."""
    values: Dict[str, float] = {}
    for name in names:
        value = c_double()
        call(function, handle, name, byref(value))
        key = name.decode().replace("-", "_")
        counts = not key.endswith("_seconds") and not key.startswith("audit_mass")
        values[key] = int(value.value) if counts else value.value
    return values
