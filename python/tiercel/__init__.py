"""Tiercel: continue one prompt, however long, with what memory there is.

    import tiercel
    engine = tiercel.Engine("path/to/model", threads=8)      # a Hugging Face directory
    with engine.session(budget=2048) as session:
        session.prefill(open("book.txt").read())
        for piece in session.stream(100):
            print(piece.text, end="", flush=True)

Options are the flags of the command, with underscores: ``tiercel run --help`` and
``tiercel.options()`` list them. The module speaks to libtiercel.so through ctypes and looks for it
in this order: the file that TIERCEL_LIBRARY names, the prefix that this module is installed in, the
loader's path.

Threads: an Engine may be used from any thread; a Session serves one call at a time, a second one
raises BusyError. The interpreter's lock is released while the library computes.
"""

from ._abi import (
    BusyError,
    DoesNotFitError,
    Error,
    Progress,
    StateError,
    UsageError,
    commit,
    options,
    version,
)
from ._engine import Engine, Generation, Piece, Session

__all__ = [
    "BusyError",
    "DoesNotFitError",
    "Engine",
    "Error",
    "Generation",
    "Piece",
    "Progress",
    "Session",
    "StateError",
    "UsageError",
    "commit",
    "options",
    "version",
]
