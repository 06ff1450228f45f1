"""Continues a text, then says how likely another continuation would have been.

    python3 continue.py MODEL_DIR "some text" " another ending"
"""

import sys

import tiercel


def show(progress: tiercel.Progress) -> bool:
    print(f"\rprefill: {progress.processed} of {progress.total} tokens", end="", file=sys.stderr)
    return True  # False would stop


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    _, model, text, other = sys.argv
    try:
        with tiercel.Engine(model) as engine, engine.session(budget=1024) as session:
            session.prefill(text, progress=show)
            print(file=sys.stderr)
            for piece in session.stream(16):
                print(piece.text, end="", flush=True)
            print()

            session.rewind()  # to the end of the prompt
            logprobs = session.score(engine.tokenize(other, no_bos=True))
            print(f"log p of {other!r}: {sum(logprobs):.3f}")
    except tiercel.Error as error:
        print(f"continue.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
