"""Batch, Prefix and Request: many prompts decoded together by a thread of the library."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import threading
import time
import weakref
from ctypes import POINTER, byref, c_double, c_int, c_int32, c_size_t, c_void_p
from typing import Any, Dict, List, Optional, Sequence, Union

from . import _abi
from ._abi import OptionHandle, StateError, Uncopied, call, encoded, library
from ._guard import BlockingCall, Guard
from ._types import (
    REASONS,
    Generation,
    Piece,
    PieceCallback,
    TokenLogprobs,
    c_count,
    c_tokens,
    goes_on,
    numbers,
)

_STATES = ("queued", "prefilling", "decoding", "finished", "failed", "cancelled")


class _Listener(Guard):
    def __init__(self, callback: PieceCallback) -> None:
        super().__init__()
        self.callback = callback


# One function for all requests, never freed: the library's thread may be in it when a request goes.
# Weakly, as what a callback holds, or has raised, may hold its request and batch: that is a cycle that
# Python can see, and no root.
_listeners: "weakref.WeakValueDictionary[int, _Listener]" = weakref.WeakValueDictionary()
_names = itertools.count(1)


@_abi.PIECE_CALLBACK
def _hear(name: Any, token: int, text: Any, length: int) -> int:
    listener = _listeners.get(name)
    if listener is None:
        return 0
    data = ctypes.string_at(text, length) if length else b""
    return listener.run(lambda: goes_on(listener.callback(Piece(token, data.decode("utf-8")))))


_NOBODY = _abi.PIECE_CALLBACK()  # NULL


class Request(Uncopied):
    """A request of a batch. Every call is safe from any thread."""

    def __init__(self, batch: "Batch", callback: Optional[PieceCallback]) -> None:
        self._batch = batch  # which ends with its last request at the earliest
        self._handle = c_void_p()
        self._name = next(_names)
        self._listener = _Listener(callback) if callback is not None else None
        if self._listener is not None:
            _listeners[self._name] = self._listener

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library.tiercel_request_free(self._handle)

    def wait(self, timeout: Optional[float] = None) -> Generation:
        """The result, once it is there; raises what the request failed of, or its callback raised.

        TimeoutError after so many seconds. BusyError in a callback that the batch waits for.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._wait_for(0.1 if end is None else min(0.1, end - time.monotonic())):
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"the request is not done after {timeout} s")
        if self._listener is not None:
            self._listener.check()
        finish = c_int32()
        call("tiercel_request_wait", self._handle, byref(finish))
        tokens, n = POINTER(c_int32)(), c_size_t()
        call("tiercel_request_tokens", self._handle, byref(tokens), byref(n))
        ids = _abi.take_array(tokens, n.value)
        text, length = c_void_p(), c_size_t()
        call("tiercel_request_text", self._handle, byref(text), byref(length))
        return Generation(ids, _abi.take_text(text, length.value), REASONS[finish.value],
                          self._logprobs())

    def _logprobs(self) -> Sequence[TokenLogprobs]:
        own, n = POINTER(c_double)(), c_size_t()
        call("tiercel_request_logprobs", self._handle, byref(own), byref(n))
        found = []
        for index, logprob in enumerate(_abi.take_array(own, n.value)):
            tokens, logprobs, n_top = POINTER(c_int32)(), POINTER(c_double)(), c_size_t()
            call("tiercel_request_top_logprobs", self._handle, index, byref(tokens),
                 byref(logprobs), byref(n_top))
            top = zip(_abi.take_array(tokens, n_top.value), _abi.take_array(logprobs, n_top.value))
            found.append(TokenLogprobs(logprob, list(top)))
        return tuple(found)

    # In pieces, so that Ctrl-C gets its turn.
    def _wait_for(self, seconds: float) -> bool:
        done = c_int()
        call("tiercel_request_wait_for", self._handle, seconds, byref(done))
        return bool(done.value)

    @property
    def state(self) -> str:
        """ "queued", "prefilling", "decoding"; then "finished", "failed" or "cancelled"."""
        value = c_double()
        call("tiercel_request_number", self._handle, b"state", byref(value))
        return _STATES[int(value.value)]

    @property
    def done(self) -> bool:
        return self._wait_for(0)

    def cancel(self) -> None:
        """Returns at once; wait() then has the tokens so far."""
        call("tiercel_request_cancel", self._handle)

    def stats(self) -> Dict[str, float]:
        """Statistics by name, such as first_token_seconds."""
        found = numbers("tiercel_request_numbers", library.tiercel_request_number_name,
                        self._handle)
        del found["state"]
        return found


class Prefix(Uncopied):
    """What many prompts of one batch begin with: a document and questions about it, say.

    It is prefilled once, when the first request behind it comes, and kept while this object or a
    request has it; while no request does, until its room is wanted. Tokens behind it attend what
    they select of it, as generated ones do or, if they are many, as those of `Session.append`.
    """

    def __init__(self) -> None:
        self._handle = c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library.tiercel_prefix_free(self._handle)

    def __len__(self) -> int:
        """In tokens."""
        return int(library.tiercel_prefix_n_tokens(self._handle))


class Batch(Uncopied):
    """Requests decoded together, in a thread of the library. Every call is safe from any thread.

    Close it, or use it in a with block, to cancel what is left and give its memory back.
    """

    def __init__(self, engine: Any, options: Dict[str, Any]) -> None:
        self._batch = c_void_p()
        self._lock = threading.RLock()  # over the two: nobody uses what is being closed
        self._live: List[Request] = []  # listeners stay until their requests are done
        self._look_at = 16  # requests, for those that are
        with OptionHandle(options) as handle, BlockingCall():  # it logs
            call("tiercel_batch_open", engine._handle, handle, byref(self._batch))
        _open_batches.add(self)

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_batch", None):
            self.close()

    def close(self) -> None:
        with BlockingCall():  # Ctrl-C comes behind it: half closed would be never closed
            with self._lock:
                batch, self._batch = self._batch, c_void_p()
            library.tiercel_batch_close(batch)  # waits for callbacks, which may need the lock
            with self._lock:
                self._live = []

    @property
    def _handle(self) -> c_void_p:
        if not self._batch:
            raise StateError("this batch is closed")
        return self._batch

    def share(self, prompt: Union[str, Sequence[int]], **options: Any) -> Prefix:
        """Text, or tokens, that prompts of this batch begin with. options: no_bos, special."""
        prefix = Prefix()
        with OptionHandle(options) as handle, self._lock:
            if isinstance(prompt, str):
                data = prompt.encode("utf-8", "surrogatepass")
                call("tiercel_batch_share", self._handle, data, len(data), handle,
                     byref(prefix._handle))
            elif options:
                raise TypeError(f"share: tokens take no options, found {', '.join(options)}")
            else:
                call("tiercel_batch_share_tokens", self._handle, c_tokens(prompt), len(prompt),
                     byref(prefix._handle))
        return prefix

    def submit(
        self,
        prompt: Union[str, Sequence[int]],
        n: int = -1,
        callback: Optional[PieceCallback] = None,
        prefix: Optional[Prefix] = None,
        **options: Any,
    ) -> Request:
        """Continues a prompt, text or tokens, by up to n tokens; -1: as n_predict says.

        With a prefix, what share() returned, the prompt is what comes behind it: text goes on where
        the prefix ends.

        The callback comes in the batch's thread and holds up all of its requests; False stops. It
        may submit and cancel, but not wait. options: sampling, n_predict, ignore_eos, no_bos,
        special.
        """
        request = Request(self, callback)
        hear = _NOBODY if callback is None else _hear
        if isinstance(prompt, str):
            data: Any = prompt.encode("utf-8", "surrogatepass")
            function, length = "tiercel_batch_submit", len(data)
        else:
            data = c_tokens(prompt)
            function, length = "tiercel_batch_submit_tokens", len(prompt)
        before: List[Any] = []
        if prefix is not None:
            function, before = function + "_behind", [prefix._handle]
        with OptionHandle(options) as handle, self._lock:
            call(function, self._handle, *before, data, length, c_count("n", n), handle, hear,
                 request._name, byref(request._handle))
            self._live.append(request)
            if len(self._live) >= self._look_at:  # now and then: each look asks for all of them
                self._live = [one for one in self._live if not one.done]
                self._look_at = 2 * len(self._live) + 16
        return request

    def stats(self) -> Dict[str, float]:
        """Statistics, and the memory plan of the largest sequences, by name."""
        with self._lock:
            return numbers("tiercel_batch_numbers", library.tiercel_batch_number_name,
                           self._handle)

    def describe(self, what: str) -> str:
        """Of the memory plan: "composition" (in one line) or "notes" (one per line)."""
        text = c_void_p()
        with self._lock:
            call("tiercel_batch_text", self._handle, encoded(what), byref(text))
        return _abi.take_text(text)


_open_batches: "weakref.WeakSet[Batch]" = weakref.WeakSet()


# Their threads must not call into an interpreter that is going.
@atexit.register
def _close_all() -> None:
    for batch in list(_open_batches):
        batch.close()
