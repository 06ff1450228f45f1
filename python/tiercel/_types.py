"""What sessions and batches have in common: results, callbacks, numbers by name."""

from __future__ import annotations

from ctypes import c_double, c_int32
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import _abi
from ._abi import Progress, UsageError, call
from ._guard import BlockingCall

# What they return: False stops; None, as of a function without return, does not.
ProgressCallback = Callable[[Progress], Optional[bool]]


class Piece(NamedTuple):
    """A token and the whole characters that it completes, often none."""

    token: int
    text: str


class TokenLogprobs(NamedTuple):
    """Natural logarithms, of the model's own distribution: before penalties, biases, temperature."""

    logprob: float  # of the token that was picked
    top: List[Tuple[int, float]]  # of the most likely ones, most likely first


class Generation(NamedTuple):
    """reason: "length", "end of text", "stopped" (by callback or cancel) or "context full"."""

    tokens: List[int]
    text: str
    reason: str
    logprobs: Sequence[TokenLogprobs] = ()  # of a request with option logprobs: one for each token


PieceCallback = Callable[[Piece], Optional[bool]]
REASONS = ("length", "end of text", "stopped", "context full")


def goes_on(answer: Optional[bool]) -> bool:
    """Of a callback."""
    return answer is None or bool(answer)


def c_count(name: str, value: int) -> int:
    """For an int64_t parameter, which ctypes would cut."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise UsageError(f"{name}: expected a count, found {value!r}")
    return value


def c_tokens(tokens: Sequence[int]) -> Any:
    if isinstance(tokens, (bytes, bytearray, memoryview)):
        raise UsageError("expected text or tokens, found bytes; decode() them")
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
        return guard.run(lambda: progress is None or goes_on(progress(seen)))

    return guard, report


def numbers(function: str, name_of: Any, *arguments: Any) -> Dict[str, Any]:
    """What a tiercel_..._numbers function says of these arguments, by the names of `name_of`."""
    names = list(_abi.listed(name_of))
    found = (c_double * len(names))()
    call(function, *arguments, found, len(names))
    values: Dict[str, Any] = {}
    for name, value in zip(names, found):
        key = name.decode().replace("-", "_")
        counts = not key.endswith("_seconds") and not key.startswith("audit_mass")
        values[key] = int(value) if counts else value
    return values
