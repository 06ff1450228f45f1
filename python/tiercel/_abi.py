"""The C interface (tiercel_c.h) as ctypes sees it: prototypes, errors, options."""

from __future__ import annotations

import ctypes
import itertools
import os
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Type, Union

from . import _library

OK, STOPPED = 0, 6


class Error(Exception):
    """What the library refuses or cannot do; the text says what would help."""


class UsageError(Error, ValueError):
    """A bad argument or option."""


class DoesNotFitError(Error, MemoryError):
    """The memory plan exceeds a limit; nothing was allocated."""


class StateError(Error):
    """Not now: a step before a prompt, a full context, a closed session or batch."""


class BusyError(Error):
    """Another call on this session is running, or a callback called back."""


_ERRORS: Dict[int, Type[Error]] = {2: UsageError, 3: DoesNotFitError, 4: StateError, 5: BusyError}


class Progress(NamedTuple):
    """Tokens of the sequence: in all, taken over from earlier work, done; seconds so far."""

    total: int
    cached: int
    processed: int
    elapsed: float


class OptionInfo(NamedTuple):
    """What an option is, for help texts."""

    type: str  # "TOKENS|X%|all"
    initial: str  # the value when it is not set; empty: none, or the model says
    help: str  # one sentence


class CProgress(ctypes.Structure):
    _fields_ = [
        ("total", c_int64),
        ("cached", c_int64),
        ("processed", c_int64),
        ("elapsed", c_double),
    ]


PROGRESS_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(CProgress))
PIECE_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32, c_void_p, c_size_t)
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_size_t)

_H = c_void_p  # a handle
_E = POINTER(c_void_p)  # tiercel_error**
_TOKENS = POINTER(c_int32)
# All that the header declares. name: (result, arguments)
_PROTOTYPES: Dict[str, Tuple[Any, List[Any]]] = {
    "tiercel_version": (c_char_p, []),
    "tiercel_commit": (c_char_p, []),
    "tiercel_error_status": (c_int32, [_H]),
    "tiercel_error_message": (c_char_p, [_H]),
    "tiercel_error_free": (None, [_H]),
    "tiercel_free": (None, [c_void_p]),
    "tiercel_options_new": (c_void_p, []),
    "tiercel_options_free": (None, [_H]),
    "tiercel_options_set": (c_int32, [_H, c_char_p, c_char_p, _E]),
    "tiercel_option_count": (c_size_t, []),
    "tiercel_option_name": (c_char_p, [c_size_t]),
    "tiercel_option_type": (c_char_p, [c_size_t]),
    "tiercel_option_initial": (c_char_p, [c_size_t]),
    "tiercel_option_help": (c_char_p, [c_size_t]),
    "tiercel_engine_open": (c_int32, [c_char_p, _H, POINTER(_H), _E]),
    "tiercel_engine_close": (None, [_H]),
    "tiercel_engine_set_log": (c_int32, [_H, LOG_CALLBACK, c_void_p, c_int32, _E]),
    "tiercel_engine_number": (c_int32, [_H, c_char_p, POINTER(c_double), _E]),
    "tiercel_engine_numbers": (c_int32, [_H, POINTER(c_double), c_size_t, _E]),
    "tiercel_engine_number_name": (c_char_p, [c_size_t]),
    "tiercel_engine_end_tokens": (c_int32, [_H, POINTER(_TOKENS), POINTER(c_size_t), _E]),
    "tiercel_engine_plan": (c_int32, [_H, c_int64, _H, c_char_p, POINTER(c_double), _E]),
    "tiercel_engine_plan_numbers": (
        c_int32,
        [_H, c_int64, _H, POINTER(c_double), c_size_t, _E],
    ),
    "tiercel_engine_plan_name": (c_char_p, [c_size_t]),
    "tiercel_engine_plan_text": (c_int32, [_H, c_int64, _H, c_char_p, POINTER(c_void_p), _E]),
    "tiercel_tokenize": (
        c_int32,
        [_H, c_char_p, c_size_t, _H, POINTER(_TOKENS), POINTER(c_size_t), _E],
    ),
    "tiercel_tokenize_chat": (
        c_int32,
        [_H, POINTER(c_char_p), POINTER(c_char_p), c_size_t, c_char_p, POINTER(_TOKENS),
         POINTER(c_size_t), _E],
    ),
    "tiercel_tokenize_chat_json": (
        c_int32,
        [_H, c_char_p, c_size_t, POINTER(_TOKENS), POINTER(c_size_t), _E],
    ),
    "tiercel_read_answer": (
        c_int32,
        [_H, _TOKENS, c_size_t, _TOKENS, c_size_t, c_char_p, POINTER(c_void_p), _E],
    ),
    "tiercel_tokenize_next_turn": (
        c_int32,
        [_H, _TOKENS, c_size_t, c_char_p, POINTER(_TOKENS), POINTER(c_size_t), _E],
    ),
    "tiercel_detokenize": (
        c_int32,
        [_H, _TOKENS, c_size_t, c_int, POINTER(c_void_p), POINTER(c_size_t), _E],
    ),
    "tiercel_session_open": (c_int32, [_H, _H, POINTER(_H), _E]),
    "tiercel_session_close": (None, [_H]),
    "tiercel_session_prefill_tokens": (
        c_int32,
        [_H, _TOKENS, c_size_t, PROGRESS_CALLBACK, c_void_p, _E],
    ),
    "tiercel_session_prefill": (
        c_int32,
        [_H, c_char_p, c_size_t, PROGRESS_CALLBACK, c_void_p, _E],
    ),
    "tiercel_session_generate": (
        c_int32,
        [_H, c_int64, PIECE_CALLBACK, c_void_p, POINTER(c_int32), _E],
    ),
    "tiercel_session_step": (c_int32, [_H, c_int32, _E]),
    "tiercel_session_logits": (c_int32, [_H, POINTER(POINTER(c_float)), POINTER(c_size_t), _E]),
    "tiercel_session_copy_logits": (c_int32, [_H, POINTER(c_float), c_size_t, _E]),
    "tiercel_session_score": (
        c_int32,
        [_H, _TOKENS, c_size_t, POINTER(c_double), PROGRESS_CALLBACK, c_void_p, _E],
    ),
    "tiercel_session_append": (
        c_int32,
        [_H, c_char_p, c_size_t, PROGRESS_CALLBACK, c_void_p, _E],
    ),
    "tiercel_session_append_tokens": (
        c_int32,
        [_H, _TOKENS, c_size_t, PROGRESS_CALLBACK, c_void_p, _E],
    ),
    "tiercel_session_fork": (c_int32, [_H, POINTER(_H), _E]),
    "tiercel_session_set_budget": (c_int32, [_H, c_int64, _E]),
    "tiercel_session_save": (c_int32, [_H, c_char_p, PROGRESS_CALLBACK, c_void_p, _E]),
    "tiercel_session_restore": (
        c_int32,
        [_H, c_char_p, _H, PROGRESS_CALLBACK, c_void_p, POINTER(_H), _E],
    ),
    "tiercel_session_rewind": (c_int32, [_H, _E]),
    "tiercel_session_reset": (c_int32, [_H, _E]),
    "tiercel_session_tokens": (c_int32, [_H, POINTER(_TOKENS), POINTER(c_size_t), _E]),
    "tiercel_session_n_tokens": (c_int32, [_H, POINTER(c_size_t), _E]),
    "tiercel_session_number": (c_int32, [_H, c_char_p, POINTER(c_double), _E]),
    "tiercel_session_numbers": (c_int32, [_H, POINTER(c_double), c_size_t, _E]),
    "tiercel_number_count": (c_size_t, []),
    "tiercel_number_name": (c_char_p, [c_size_t]),
    "tiercel_session_text": (c_int32, [_H, c_char_p, POINTER(c_void_p), _E]),
    "tiercel_batch_open": (c_int32, [_H, _H, POINTER(_H), _E]),
    "tiercel_batch_close": (None, [_H]),
    "tiercel_batch_submit": (
        c_int32,
        [_H, c_char_p, c_size_t, c_int64, _H, PIECE_CALLBACK, c_void_p, POINTER(_H), _E],
    ),
    "tiercel_batch_submit_tokens": (
        c_int32,
        [_H, _TOKENS, c_size_t, c_int64, _H, PIECE_CALLBACK, c_void_p, POINTER(_H), _E],
    ),
    "tiercel_batch_share": (c_int32, [_H, c_char_p, c_size_t, _H, POINTER(_H), _E]),
    "tiercel_batch_share_tokens": (c_int32, [_H, _TOKENS, c_size_t, POINTER(_H), _E]),
    "tiercel_batch_submit_behind": (
        c_int32,
        [_H, _H, c_char_p, c_size_t, c_int64, _H, PIECE_CALLBACK, c_void_p, POINTER(_H), _E],
    ),
    "tiercel_batch_submit_tokens_behind": (
        c_int32,
        [_H, _H, _TOKENS, c_size_t, c_int64, _H, PIECE_CALLBACK, c_void_p, POINTER(_H), _E],
    ),
    "tiercel_prefix_n_tokens": (c_size_t, [_H]),
    "tiercel_prefix_free": (None, [_H]),
    "tiercel_batch_number": (c_int32, [_H, c_char_p, POINTER(c_double), _E]),
    "tiercel_batch_numbers": (c_int32, [_H, POINTER(c_double), c_size_t, _E]),
    "tiercel_batch_number_name": (c_char_p, [c_size_t]),
    "tiercel_batch_text": (c_int32, [_H, c_char_p, POINTER(c_void_p), _E]),
    "tiercel_request_wait": (c_int32, [_H, POINTER(c_int32), _E]),
    "tiercel_request_wait_for": (c_int32, [_H, c_double, POINTER(c_int), _E]),
    "tiercel_request_tokens": (c_int32, [_H, POINTER(_TOKENS), POINTER(c_size_t), _E]),
    "tiercel_request_text": (c_int32, [_H, POINTER(c_void_p), POINTER(c_size_t), _E]),
    "tiercel_request_logprobs": (
        c_int32,
        [_H, POINTER(POINTER(c_double)), POINTER(c_size_t), _E],
    ),
    "tiercel_request_top_logprobs": (
        c_int32,
        [_H, c_size_t, POINTER(_TOKENS), POINTER(POINTER(c_double)), POINTER(c_size_t), _E],
    ),
    "tiercel_request_number": (c_int32, [_H, c_char_p, POINTER(c_double), _E]),
    "tiercel_request_numbers": (c_int32, [_H, POINTER(c_double), c_size_t, _E]),
    "tiercel_request_number_name": (c_char_p, [c_size_t]),
    "tiercel_request_cancel": (c_int32, [_H, _E]),
    "tiercel_request_free": (None, [_H]),
}


def _load() -> ctypes.CDLL:
    found = _library.load()
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(found, name, None)
        if function is None:
            raise ImportError(f"{found._name} has no {name}: another version of libtiercel?")
        function.restype, function.argtypes = result, arguments
    return found


library = _load()


def call(name: str, *arguments: Any) -> int:
    """Calls a function whose last parameter takes the error; raises it."""
    error = c_void_p()
    status = getattr(library, name)(*arguments, byref(error))
    if status in (OK, STOPPED):
        return status
    message = library.tiercel_error_message(error).decode("utf-8", "replace")
    library.tiercel_error_free(error)
    raise _ERRORS.get(status, Error)(message)


class Uncopied:
    """There is one of it: what copy or pickle made would be closed twice."""

    _other_ways = ""

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError(f"{type(self).__name__} objects cannot be copied{self._other_ways}")


class OptionHandle:
    """A tiercel_options for the length of a with block; True and False as the library spells."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._handle: Optional[int] = None

    def __enter__(self) -> Optional[int]:
        self._handle = library.tiercel_options_new()
        try:
            for name, value in self._values.items():
                text = str(value).lower() if isinstance(value, bool) else str(value)
                key = encoded(name.replace("_", "-"))
                call("tiercel_options_set", self._handle, key, encoded(text))
        except BaseException:
            self.__exit__()
            raise
        return self._handle

    def __exit__(self, *_: Any) -> None:
        library.tiercel_options_free(self._handle)
        self._handle = None


def encoded(text: str) -> bytes:
    """For a parameter that ends with its first zero."""
    if "\0" in text:
        raise UsageError(f"{text!r}: expected text without NUL")
    return text.encode("utf-8", "surrogatepass")


def encoded_path(path: Union[str, "os.PathLike[str]"]) -> bytes:
    """The name of a file, as the system spells it."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise UsageError(f"{path!r}: expected a path without NUL")
    return name


def take_text(pointer: c_void_p, length: Optional[int] = None) -> str:
    """The text at a pointer that is ours, which is freed."""
    try:
        data = ctypes.string_at(pointer) if length is None else ctypes.string_at(pointer, length)
        return data.decode("utf-8")
    finally:
        library.tiercel_free(pointer)


def take_array(values: Any, n: int) -> List[Any]:
    """The tokens, or numbers, at a pointer that is ours, which is freed."""
    try:
        return values[:n]
    finally:
        library.tiercel_free(ctypes.cast(values, c_void_p))


def listed(name_of: Any) -> Iterator[bytes]:
    """The names that a tiercel_..._name function has: index 0 until NULL."""
    for i in itertools.count():
        name = name_of(i)
        if name is None:
            return
        yield name


def version() -> str:
    """Of the library."""
    return library.tiercel_version().decode()


def commit() -> str:
    """Of the library's sources, or "unknown"."""
    return library.tiercel_commit().decode()


def options() -> Dict[str, OptionInfo]:
    """What can be set, by name: what values look like, which one it starts with, what it does."""
    found = {}
    for i, name in enumerate(listed(library.tiercel_option_name)):
        found[name.decode().replace("-", "_")] = OptionInfo(
            library.tiercel_option_type(i).decode(),
            library.tiercel_option_initial(i).decode(),
            library.tiercel_option_help(i).decode(),
        )
    return found
