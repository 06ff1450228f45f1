"""What Python raises while the library computes: in callbacks, and in handlers of signals."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Callable, Dict, Optional


class Guard:
    """Runs Python in a callback; what it raises stops the call and is raised again behind it."""

    def __init__(self) -> None:
        self.raised: Optional[BaseException] = None
        self._catches = False

    def run(self, function: Callable[[], bool]) -> int:
        goes_on = False
        try:
            try:
                self._catches = True
                goes_on = bool(function())
            finally:
                self._catches = False
        except BaseException as error:  # KeyboardInterrupt too
            if self.raised is None:
                self.raised = error
        return int(goes_on and self.raised is None)

    def check(self) -> None:
        if self.raised is not None:
            raise self.raised


# Of C's threads too, which current_thread() would list for ever.
def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


# Those whose handlers are known to raise: KeyboardInterrupt, SystemExit, a timeout.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


class BlockingCall(Guard):
    """A with block around a C call: behind it, what was raised meanwhile is raised.

    Python runs handlers of signals in the main thread, between two instructions: while C computes,
    that is where a callback begins, before any `try`, and ctypes drops what is raised there, Ctrl-C
    say. So, for the length of the block, handlers still run but what they raise is kept: the next
    callback, or the one that has just begun, stops the call. A call should therefore have a
    callback even if nobody asked for one.

    Inside a callback's own Python, handlers raise as ever. Other threads run no handlers, and may
    set none: there this is a Guard.
    """

    _innermost: Optional["BlockingCall"] = None  # in the main thread

    def __init__(self) -> None:
        super().__init__()
        self._outer: Optional[BlockingCall] = None
        self._handlers: Dict[signal.Signals, Callable[[int, Optional[FrameType]], Any]] = {}

    def __enter__(self) -> "BlockingCall":
        if _in_main_thread():
            self._outer = BlockingCall._innermost
            try:
                for number in _SIGNALS:
                    handler = signal.getsignal(number)
                    if callable(handler):  # not the system's, nor one that C has set
                        self._handlers[number] = handler
                        signal.signal(number, self._handle)
                BlockingCall._innermost = self
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(self, *_: Any) -> None:
        if _in_main_thread():
            self._restore()
        raised, self.raised = self.raised, None
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # or its traceback, which has this frame, keeps sessions alive

    def _restore(self) -> None:
        try:
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._handle:  # else a callback has set another
                    signal.signal(number, handler)
        finally:
            BlockingCall._innermost = self._outer

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        handler = self._handlers[signal.Signals(number)]
        if BlockingCall._innermost is not self or self._catches:
            handler(number, frame)
            return
        try:
            handler(number, frame)
        except BaseException as error:
            self.raised = error
