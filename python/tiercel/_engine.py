"""Engine and Session: the C handles with Python's manners."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import weakref
from array import array
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_void_p
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

from . import _abi
from ._abi import (
    OptionHandle,
    StateError,
    Uncopied,
    UsageError,
    call,
    encoded,
    encoded_path,
    library,
)
from ._batch import Batch
from ._guard import BlockingCall
from ._types import (
    REASONS,
    Generation,
    Piece,
    PieceCallback,
    ProgressCallback,
    c_count,
    c_tokens,
    goes_on,
    numbers,
    reporter,
)

LogCallback = Callable[[int, str], Any]
_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)
_SILENCE = _abi.LOG_CALLBACK()  # NULL


class _Log:
    """One C function for all callbacks that an engine is given, so that none is freed under it."""

    def __init__(self) -> None:
        self.callback: Optional[LogCallback] = None
        # Not of self: without a cycle, all goes with the handle.
        state = weakref.ref(self)

        @_abi.LOG_CALLBACK
        def hear(_: Any, level: int, line: int, length: int) -> None:
            log = state()
            callback = log.callback if log is not None else None
            if callback is not None:
                callback(_LEVELS[level], ctypes.string_at(line, length).decode("utf-8", "replace"))

        self.hear = hear


_kept: List[_Log] = []  # for ever


class _EngineHandle(Uncopied, c_void_p):
    """Closes with its last reference: a call that runs in another thread has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log = _Log()

    def __del__(self) -> None:
        if not self:
            return
        # Sessions live on, the callback does not. It is refused where the callback's own line is
        # what ends the engine.
        self.log.callback = None
        if library.tiercel_engine_set_log(self, _SILENCE, None, 0, None) != _abi.OK:
            _kept.append(self.log)
        library.tiercel_engine_close(self)


def _json_bytes(value: Any) -> bytes:
    """Half a surrogate pair, which is no character, becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _as_endpoint_has_it(message: Any) -> Any:
    """transformers' documentation gives calls a dict, OpenAI's endpoint a text that is JSON.

    What is neither is for the library to refuse.
    """

    def with_text(made: Any) -> Any:
        function = made.get("function") if isinstance(made, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
            return made
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return {**made, "function": {**function, "arguments": arguments}}

    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [with_text(made) for made in message["tool_calls"]]}


class Engine(Uncopied):
    """A model in memory, its tokenizer, and what computes.

    Close it, or use it in a with block, to give it up early; its sessions and batches live on, and
    the model with them.
    """

    def __init__(self, directory: Union[str, "os.PathLike[str]"], **options: Any) -> None:
        """options: backend, device, threads; others are the defaults of sessions and batches."""
        self._engine: Optional[_EngineHandle] = None
        opened = _EngineHandle()
        with OptionHandle(options) as handle:
            call("tiercel_engine_open", encoded_path(directory), handle, byref(opened))
        self._engine = opened

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Every later call raises StateError, except close. Calls that are running end as ever."""
        self._engine = None

    @property
    def _handle(self) -> _EngineHandle:
        engine = self._engine
        if engine is None:
            raise StateError("this engine is closed")
        return engine

    def set_log(self, callback: Optional[LogCallback], level: int = logging.INFO) -> None:
        """What the library would say if it printed, as (level of module logging, line).

        engine.set_log(logging.getLogger("tiercel").log) is one use. None: silence, as behind close.
        Raises BusyError in a log callback.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"set_log: expected a function or None, found {callback!r}")
        engine = self._handle
        hear = engine.log.hear if callback is not None else _SILENCE
        first = 0 if level <= logging.INFO else 1 if level <= logging.WARNING else 2
        call("tiercel_engine_set_log", engine, hear, None, first)
        engine.log.callback = callback

    def session(self, **options: Any) -> "Session":
        """An empty session; memory is taken by its prefill."""
        opened = Session()
        with OptionHandle(options) as handle:
            call("tiercel_session_open", self._handle, handle, byref(opened._session))
        return opened

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
        restored = Session()
        with OptionHandle(options) as handle, guard:
            status = call("tiercel_session_restore", self._handle, encoded_path(path), handle,
                          report, None, byref(restored._session))
        return restored if status == _abi.OK else None

    def batch(self, **options: Any) -> Batch:
        """Requests decoded together.

        options: max_prompt, parallel, max_gap, micro_batches, and a session's.
        """
        return Batch(self, options)

    def tokenize(self, text: str, **options: Any) -> List[int]:
        """options: no_bos, special."""
        data = text.encode("utf-8", "surrogatepass")
        tokens, n = POINTER(c_int32)(), c_size_t()
        with OptionHandle(options) as handle:
            call("tiercel_tokenize", self._handle, data, len(data), handle, byref(tokens), byref(n))
        return _abi.take_array(tokens, n.value)

    def tokenize_chat(
        self,
        messages: Sequence[Dict[str, Any]],
        date: str = "",
        tools: Optional[Sequence[Dict[str, Any]]] = None,
        **variables: Any,
    ) -> List[int]:
        """[{"role": "user", "content": ..}, ..] by the model's chat template, an answer due.

        tools: that the answer may call, as OpenAI's endpoint has them; read_answer takes the answer apart, and
        messages may be what it returns, and {"role": "tool", "content": ..}. What a call was given may be
        a dict too. variables: others of the template, such as enable_thinking=False.
        """
        conversation: Dict[str, Any] = {"messages": [_as_endpoint_has_it(m) for m in messages]}
        if date:
            conversation["date"] = date
        if tools:
            conversation["tools"] = list(tools)
        if variables:
            conversation["chat_template_kwargs"] = variables
        data = _json_bytes(conversation)
        tokens, count = POINTER(c_int32)(), c_size_t()
        call("tiercel_tokenize_chat_json", self._handle, data, len(data), byref(tokens),
             byref(count))
        return _abi.take_array(tokens, count.value)

    def read_answer(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        tools: Optional[Sequence[Dict[str, Any]]] = None,
    ) -> Dict[str, Any]:
        """The message that an answer is: {"role": "assistant", "content": ..}.

        With what was thought ("reasoning_content") and what is called ("tool_calls", whose arguments are
        what the model wrote: check them). prompt: what it answers. tools: those of tokenize_chat.
        """
        message = c_void_p()
        call("tiercel_read_answer", self._handle, c_tokens(prompt), len(prompt), c_tokens(answer),
             len(answer), _json_bytes(list(tools)) if tools else None, byref(message))
        return json.loads(_abi.take_text(message))

    def tokenize_next_turn(self, sequence: Sequence[int], user: str) -> List[int]:
        """What to append behind an answer for the user's next message."""
        tokens, count = POINTER(c_int32)(), c_size_t()
        call("tiercel_tokenize_next_turn", self._handle, c_tokens(sequence), len(sequence),
             encoded(user), byref(tokens), byref(count))
        return _abi.take_array(tokens, count.value)

    def detokenize(self, tokens: Sequence[int], skip_special: bool = False) -> str:
        text, length = c_void_p(), c_size_t()
        call("tiercel_detokenize", self._handle, c_tokens(tokens), len(tokens), int(skip_special),
             byref(text), byref(length))
        return _abi.take_text(text, length.value)

    def plan(self, n_prompt: int, **options: Any) -> Dict[str, int]:
        """Bytes by purpose that a prompt of so many tokens would take; context: in tokens.

        Allocates nothing. Raises as Session.prefill does.
        """
        with OptionHandle(options) as handle:
            return numbers("tiercel_engine_plan_numbers", library.tiercel_engine_plan_name,
                           self._handle, c_count("n_prompt", n_prompt), handle)

    def describe_plan(self, n_prompt: int, what: str, **options: Any) -> str:
        """The plan's "composition" (what selection would do, in one line) or "notes" (what was
        adjusted or is worth a warning, one per line)."""
        text = c_void_p()
        with OptionHandle(options) as handle:
            call("tiercel_engine_plan_text", self._handle, c_count("n_prompt", n_prompt), handle,
                 encoded(what), byref(text))
        return _abi.take_text(text)

    def info(self) -> Dict[str, int]:
        """The model: layers, vocab_size, max_positions, parameters, weight_bytes, bos_token (-1:
        none)."""
        return numbers("tiercel_engine_numbers", library.tiercel_engine_number_name, self._handle)

    @property
    def end_tokens(self) -> List[int]:
        """Generation stops at any of them."""
        tokens, n = POINTER(c_int32)(), c_size_t()
        call("tiercel_engine_end_tokens", self._handle, byref(tokens), byref(n))
        return _abi.take_array(tokens, n.value)


_FORK_IT = ": fork() it, or save() it for another process"


class _SessionHandle(Uncopied, c_void_p):
    """NULL until C fills it in. Closes as _EngineHandle does, which takes a while.

    Ctrl-C in a __del__ of Python is dropped too. This one has no Python: it binds to
    partial(close, self), by C alone, and what is pending is raised in whoever let go.
    """

    _other_ways = _FORK_IT
    __del__: Any = property(partial(partial, library.tiercel_session_close))


class Session(Uncopied):
    """One sequence: begins empty, takes a prompt once (prefill or score), grows behind it.

    One call at a time. Close it, or use it in a with block, to give its memory back early.
    """

    _other_ways = _FORK_IT

    def __init__(self) -> None:
        self._session = _SessionHandle()
        self.finish_reason: Optional[str] = None  # of the last stream or generate

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Every later call raises StateError, except close. A call that is running ends as ever."""
        self._session = _SessionHandle()

    @property
    def _handle(self) -> _SessionHandle:
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
            with guard:
                status = call("tiercel_session_prefill", self._handle, data, len(data), report,
                              None)
        else:
            ids = c_tokens(prompt)
            with guard:
                status = call("tiercel_session_prefill_tokens", self._handle, ids, len(ids), report,
                              None)
        return status == _abi.OK

    def generate(self, n: int, callback: Optional[PieceCallback] = None) -> Generation:
        """Appends up to n tokens; callback returns False to stop. Splitting n changes nothing."""
        guard = BlockingCall()
        pieces: List[Piece] = []

        @_abi.PIECE_CALLBACK
        def take(_: Any, token: int, text: Any, length: int) -> int:
            def run() -> bool:
                data = ctypes.string_at(text, length) if length else b""
                pieces.append(Piece(token, data.decode("utf-8")))
                return callback is None or goes_on(callback(pieces[-1]))

            return guard.run(run)

        finish = c_int32()
        with guard:
            call("tiercel_session_generate", self._handle, c_count("n", n), take, None,
                 byref(finish))
            self.finish_reason = REASONS[finish.value]
        return Generation([p.token for p in pieces], "".join(p.text for p in pieces),
                          self.finish_reason)

    def stream(self, n: int) -> Iterator[Piece]:
        """As generate, a piece at a time; what is not asked for is not computed.

        Ctrl-C while a token is computed: `tokens` has it, the stream ends without it.
        """
        for _ in range(c_count("n", n)):
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

        256 tokens and more (64 with dense attention) are prefilled as the prompt was.
        False: progress returned False; n_tokens says how many are in.
        """
        guard, report = reporter(progress)
        if isinstance(more, str):
            data = more.encode("utf-8", "surrogatepass")
            with guard:
                status = call("tiercel_session_append", self._handle, data, len(data), report, None)
        else:
            ids = c_tokens(more)
            with guard:
                status = call("tiercel_session_append_tokens", self._handle, ids, len(ids), report,
                              None)
        return status == _abi.OK

    def fork(self) -> "Session":
        """A session that stands where this one does and goes on by itself."""
        copy = Session()
        call("tiercel_session_fork", self._handle, byref(copy._session))
        return copy

    def logits(self) -> "array[float]":
        """fp32, one per token of the vocabulary, behind the last token."""
        handle, pointer, n = self._handle, POINTER(c_float)(), c_size_t()
        call("tiercel_session_logits", handle, byref(pointer), byref(n))
        # Another thread may have gone on by now: a copy made within a call is whole.
        found = (c_float * n.value)()
        call("tiercel_session_copy_logits", handle, found, n.value)
        return array("f", bytes(found))

    def score(
        self, tokens: Sequence[int], progress: Optional[ProgressCallback] = None
    ) -> List[float]:
        """Appends tokens; log p of each given all before it. The first of an empty session is NaN.

        Fewer: progress returned False; of a prompt nothing is kept then, behind one what was scored
        is in.
        """
        guard, report = reporter(progress)
        ids, logprobs = c_tokens(tokens), (c_double * len(tokens))()
        handle, before, after = self._handle, c_size_t(), c_size_t()
        call("tiercel_session_n_tokens", handle, byref(before))
        with guard:
            status = call("tiercel_session_score", handle, ids, len(ids), logprobs, report, None)
        if status == _abi.OK:
            return list(logprobs)
        call("tiercel_session_n_tokens", handle, byref(after))
        return logprobs[: after.value - before.value]

    def set_budget(self, tokens: int) -> None:
        """Selected tokens per KV head from the next one on, up to option budget; -1: all of it."""
        call("tiercel_session_set_budget", self._handle, c_count("tokens", tokens))

    def save(
        self, path: Union[str, "os.PathLike[str]"], progress: Optional[ProgressCallback] = None
    ) -> bool:
        """To a file for Engine.restore, which is complete or not there; the session goes on.

        False: progress returned False.
        """
        guard, report = reporter(progress)
        name = encoded_path(path)
        with guard:
            status = call("tiercel_session_save", self._handle, name, report, None)
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
        return _abi.take_array(tokens, n.value)

    @property
    def n_tokens(self) -> int:
        """As len(tokens), without a copy of them."""
        n = c_size_t()
        call("tiercel_session_n_tokens", self._handle, byref(n))
        return n.value

    def stats(self) -> Dict[str, float]:
        """Statistics and memory plan by name; zeros in an empty session."""
        return numbers("tiercel_session_numbers", library.tiercel_number_name, self._handle)

    def describe(self, what: str) -> str:
        """ "backend", "composition" or "notes"; empty in an empty session."""
        text = c_void_p()
        call("tiercel_session_text", self._handle, encoded(what), byref(text))
        return _abi.take_text(text)
