"""Tiercel: continue one prompt, however long, with what memory there is.

    import tiercel
    engine = tiercel.Engine("path/to/model", threads=8)      # a Hugging Face directory, or a GGUF file
    with engine.session(budget=2048) as session:
        session.prefill(open("book.txt").read())
        for piece in session.stream(100):
            print(piece.text, end="", flush=True)

    with engine.batch(max_prompt=4000, parallel=8) as batch:  # many prompts, decoded together
        requests = [batch.submit(prompt, 100) for prompt in prompts]
        answers = [request.wait().text for request in requests]
        book = batch.share(document)                          # prefilled once for all questions
        requests = [batch.submit(question, 100, prefix=book) for question in questions]

Options are the flags of the command, with underscores: ``tiercel run --help`` and
``tiercel.options()`` list them. The module speaks to libtiercel.so through ctypes and looks for it
in this order: the file that TIERCEL_LIBRARY names (and then nowhere else), the prefix that this
module lies in, the one that pip installed it from, the loader's path, the folder that pkg-config
names.

Threads: an Engine, a Batch and a Request may be used from any thread; a Session serves one call at
a time, a second one raises BusyError. The interpreter's lock is released while the library
computes.

Signals: Ctrl-C, and whatever a handler of SIGINT, SIGTERM or SIGALRM raises, stops a call in the
main thread as a callback that says False does, and is raised behind it; so `tokens` has what was
generated until then. What has no callback is not stopped, the exception comes at its end: step,
fork, opening an engine.
"""

from ._abi import (
    BusyError,
    DoesNotFitError,
    Error,
    OptionInfo,
    Progress,
    StateError,
    UsageError,
    commit,
    options,
    version,
)
from ._batch import Batch, Prefix, Request
from ._engine import Engine, Session
from ._types import Generation, Piece, TokenLogprobs

__all__ = [
    "Batch",
    "BusyError",
    "DoesNotFitError",
    "Engine",
    "Error",
    "Generation",
    "OptionInfo",
    "Piece",
    "Prefix",
    "Progress",
    "Request",
    "Session",
    "StateError",
    "TokenLogprobs",
    "UsageError",
    "commit",
    "options",
    "version",
]
