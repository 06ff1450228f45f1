"""Engine and Session: the C handles with Python's manners."""

from __future__ import annotations

import ctypes
import logging
import os
from array import array
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_void_p
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

from . import _abi
from ._abi import OptionHandle, StateError, UsageError, call, encoded, library
from ._batch import Batch
from ._types import (
    REASONS,
    Generation,
    Guard,
    Piece,
    PieceCallback,
    ProgressCallback,
    c_tokens,
    numbers,
    reporter,
)


class Engine:
    """A model in memory, its tokenizer, and what computes. Lives on in sessions and batches."""

    def __init__(self, directory: Union[str, "os.PathLike[str]"], **options: Any) -> None:
        """options: backend, device, threads; others are the defaults of sessions and batches."""
        self._handle = c_void_p()
        self._log: Any = None
        with OptionHandle(options) as handle:
            call("tiercel_engine_open", encoded(os.fspath(directory)), handle, byref(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            if self._log is not None:  # sessions live on, the callback does not
                library.tiercel_engine_set_log(self._handle, _abi.LOG_CALLBACK(), None, 0, None)
            library.tiercel_engine_close(self._handle)

    def set_log(
        self, callback: Optional[Callable[[int, str], Any]], level: int = logging.INFO
    ) -> None:
        """What the library would say if it printed, as (level of module logging, line).

        engine.set_log(logging.getLogger("tiercel").log) is one use. None: silence.
        """

        @_abi.LOG_CALLBACK
        def log(_: Any, of: int, line: int, length: int) -> None:
            text = ctypes.string_at(line, length).decode("utf-8", "replace")
            callback((logging.INFO, logging.WARNING, logging.ERROR)[of], text)  # type: ignore

        chosen = log if callback is not None else _abi.LOG_CALLBACK()
        first = 0 if level <= logging.INFO else 1 if level <= logging.WARNING else 2
        call("tiercel_engine_set_log", self._handle, chosen, None, first)
        self._log = chosen  # lives as long as it may be called

    def session(self, **options: Any) -> "Session":
        """An empty session; memory is taken by its prefill."""
        session = c_void_p()
        with OptionHandle(options) as handle:
            call("tiercel_session_open", self._handle, handle, byref(session))
        return Session(session)

    def restore(
        self,
        path: Union[str, "os.PathLike[str]"],
        progress: Optional[ProgressCallback] = None,
        **options: Any,
    ) -> Optional["Session"]:
        """The session that Session.save saved; None: progress returned False.

        options: those not given are as saved where its cache depends on them, else the engine's.
        """
        guard, report = reporter(progress)
        session = c_void_p()
        with OptionHandle(options) as handle:
            status = call("tiercel_session_restore", self._handle, encoded(os.fspath(path)), handle,
                          report, None, byref(session))
        restored = Session(session) if status == _abi.OK else None
        guard.check()
        return restored

    def batch(self, **options: Any) -> Batch:
        """Requests decoded together. options: max_prompt, parallel, max_gap, and a session's."""
        return Batch(self, options)

    def tokenize(self, text: str, **options: Any) -> List[int]:
        """options: no_bos, special."""
        data = text.encode("utf-8", "surrogatepass")
        tokens, n = POINTER(c_int32)(), c_size_t()
        with OptionHandle(options) as handle:
            call("tiercel_tokenize", self._handle, data, len(data), handle, byref(tokens), byref(n))
        return _abi.take_tokens(tokens, n.value)

    def tokenize_chat(self, messages: Sequence[Dict[str, str]], date: str = "") -> List[int]:
        """[{"role": "user", "content": ..}, ..] by the model's chat template, an answer due."""
        n = len(messages)
        roles, contents = (c_char_p * n)(), (c_char_p * n)()
        for i, message in enumerate(messages):
            roles[i] = encoded(message["role"])
            contents[i] = encoded(message["content"])
        tokens, count = POINTER(c_int32)(), c_size_t()
        call("tiercel_tokenize_chat", self._handle, roles, contents, n, encoded(date),
             byref(tokens), byref(count))
        return _abi.take_tokens(tokens, count.value)

    def tokenize_next_turn(self, sequence: Sequence[int], user: str) -> List[int]:
        """What to append behind an answer for the user's next message."""
        tokens, count = POINTER(c_int32)(), c_size_t()
        call("tiercel_tokenize_next_turn", self._handle, c_tokens(sequence), len(sequence),
             encoded(user), byref(tokens), byref(count))
        return _abi.take_tokens(tokens, count.value)

    def detokenize(self, tokens: Sequence[int], skip_special: bool = False) -> str:
        text, length = c_void_p(), c_size_t()
        call("tiercel_detokenize", self._handle, c_tokens(tokens), len(tokens), int(skip_special),
             byref(text), byref(length))
        return _abi.take_text(text, length.value)

    def plan(self, n_prompt: int, **options: Any) -> Dict[str, int]:
        """Bytes by purpose that a prompt of so many tokens would take; allocates nothing."""
        names = ("device-total", "host-total", "resident", "context")
        with OptionHandle(options) as handle:
            return {name.replace("-", "_"): self._plan(n_prompt, handle, name) for name in names}

    def _plan(self, n_prompt: int, options: Optional[int], name: str) -> int:
        value = c_double()
        call("tiercel_engine_plan", self._handle, n_prompt, options, name.encode(), byref(value))
        return int(value.value)

    def info(self) -> Dict[str, int]:
        """The model: layers, vocab_size, max_positions, parameters, weight_bytes, bos_token."""
        names = ("layers", "vocab-size", "max-positions", "parameters", "weight-bytes", "bos-token")
        values: Dict[str, int] = {}
        for name in names:
            value = c_double()
            call("tiercel_engine_number", self._handle, name.encode(), byref(value))
            values[name.replace("-", "_")] = int(value.value)
        return values


class Session:
    """One sequence: begins empty, takes a prompt once (prefill or score), grows behind it.

    One call at a time. Close it, or use it in a with block, to give its memory back early.
    """

    def __init__(self, handle: c_void_p) -> None:
        self._session = handle
        self.finish_reason: Optional[str] = None  # of the last stream or generate

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_session", None):
            self.close()

    def close(self) -> None:
        library.tiercel_session_close(self._session)
        self._session = c_void_p()

    @property
    def _handle(self) -> c_void_p:
        if not self._session:
            raise StateError("this session is closed")
        return self._session

    def prefill(
        self, prompt: Union[str, Sequence[int]], progress: Optional[ProgressCallback] = None
    ) -> bool:
        """Runs the prompt, text or tokens.

        False: progress returned False, the session is empty again.
        """
        guard, report = reporter(progress)
        if isinstance(prompt, str):
            data = prompt.encode("utf-8", "surrogatepass")
            status = call("tiercel_session_prefill", self._handle, data, len(data), report, None)
        else:
            status = call("tiercel_session_prefill_tokens", self._handle, c_tokens(prompt),
                          len(prompt), report, None)
        guard.check()
        return status == _abi.OK

    def generate(self, n: int, callback: Optional[PieceCallback] = None) -> Generation:
        """Appends up to n tokens; callback returns False to stop. Splitting n changes nothing."""
        guard = Guard()
        pieces: List[Piece] = []

        @_abi.PIECE_CALLBACK
        def take(_: Any, token: int, text: Any, length: int) -> int:
            def run() -> bool:
                data = ctypes.string_at(text, length) if length else b""
                pieces.append(Piece(token, data.decode("utf-8")))
                return callback is None or bool(callback(pieces[-1]))

            return guard.run(run)

        finish = c_int32()
        call("tiercel_session_generate", self._handle, n, take, None, byref(finish))
        guard.check()
        self.finish_reason = REASONS[finish.value]
        return Generation([p.token for p in pieces], "".join(p.text for p in pieces),
                          self.finish_reason)

    def stream(self, n: int) -> Iterator[Piece]:
        """As generate, a piece at a time; what is not asked for is not computed."""
        for _ in range(n):
            result = self.generate(1)
            if result.tokens:
                yield Piece(result.tokens[0], result.text)
            if result.reason != "length":
                return

    def step(self, token: int) -> None:
        """Appends one token."""
        if not 0 <= token < 1 << 31:
            raise UsageError(f"token {token}: expected 0 to {2**31 - 1}")
        call("tiercel_session_step", self._handle, token)

    def append(
        self, more: Union[str, Sequence[int]], progress: Optional[ProgressCallback] = None
    ) -> bool:
        """Appends text or tokens behind the prompt: as a step with each token, but faster.

        False: progress returned False; tokens says how many are in.
        """
        guard, report = reporter(progress)
        if isinstance(more, str):
            data = more.encode("utf-8", "surrogatepass")
            status = call("tiercel_session_append", self._handle, data, len(data), report, None)
        else:
            status = call("tiercel_session_append_tokens", self._handle, c_tokens(more), len(more),
                          report, None)
        guard.check()
        return status == _abi.OK

    def fork(self) -> "Session":
        """A session that stands where this one does and goes on by itself."""
        session = c_void_p()
        call("tiercel_session_fork", self._handle, byref(session))
        return Session(session)

    def logits(self) -> "array[float]":
        """fp32, one per token of the vocabulary, behind the last token."""
        pointer, n = POINTER(c_float)(), c_size_t()
        call("tiercel_session_logits", self._handle, byref(pointer), byref(n))
        return array("f", ctypes.string_at(pointer, 4 * n.value))

    def score(
        self, tokens: Sequence[int], progress: Optional[ProgressCallback] = None
    ) -> List[float]:
        """Appends tokens; log p of each given all before it. The first of an empty session is NaN.

        Empty: progress (of a prompt only) returned False, the session is empty again.
        """
        guard, report = reporter(progress)
        logprobs = (c_double * len(tokens))()
        status = call("tiercel_session_score", self._handle, c_tokens(tokens), len(tokens),
                      logprobs, report, None)
        guard.check()
        return list(logprobs) if status == _abi.OK else []

    def set_budget(self, tokens: int) -> None:
        """Selected tokens per KV head from the next one on, up to option budget; -1: all of it."""
        call("tiercel_session_set_budget", self._handle, tokens)

    def save(
        self, path: Union[str, "os.PathLike[str]"], progress: Optional[ProgressCallback] = None
    ) -> bool:
        """To a file for Engine.restore, which is complete or not there; the session goes on.

        False: progress returned False.
        """
        guard, report = reporter(progress)
        status = call("tiercel_session_save", self._handle, encoded(os.fspath(path)), report, None)
        guard.check()
        return status == _abi.OK

    def rewind(self) -> None:
        """Back to the end of the prompt."""
        call("tiercel_session_rewind", self._handle)

    def reset(self) -> None:
        """Empty again, memory given back."""
        call("tiercel_session_reset", self._handle)

    @property
    def tokens(self) -> List[int]:
        tokens, n = POINTER(c_int32)(), c_size_t()
        call("tiercel_session_tokens", self._handle, byref(tokens), byref(n))
        return _abi.take_tokens(tokens, n.value)

    def stats(self) -> Dict[str, float]:
        """Statistics and memory plan by name; zeros in an empty session."""
        count = library.tiercel_number_count()
        names = [library.tiercel_number_name(i) for i in range(count)]
        return numbers("tiercel_session_number", self._handle, names)

    def describe(self, what: str) -> str:
        """ "backend", "composition" or "notes"."""
        text = c_void_p()
        call("tiercel_session_text", self._handle, what.encode(), byref(text))
        return _abi.take_text(text)
