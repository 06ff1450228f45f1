"""Finding libtiercel.so: which places are tried, in which order, and saying so when none has it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Iterator, List, Optional
from urllib.parse import urlparse
from urllib.request import url2pathname

SONAME = "libtiercel.so.0.1"


def load() -> ctypes.CDLL:
    """The library. ImportError naming every place that was tried, and TIERCEL_LIBRARY."""
    tried: List[str] = []
    for candidate in _candidates(tried):
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:  # "{path}: cannot open shared object file: ..."
            tried.append(str(error))
    places = "".join(f"\n  {one}" for one in tried)
    raise ImportError(
        f"libtiercel cannot be loaded; tried:{places}\n"
        "Install it (cmake --install), or name the file in TIERCEL_LIBRARY."
    )


def _candidates(tried: List[str]) -> Iterator[str]:
    """Files, the likeliest first; `tried` gets what places without one have to say."""
    named = os.environ.get("TIERCEL_LIBRARY")
    if named:  # and nothing else: whoever names one does not want another one
        tried.append("TIERCEL_LIBRARY, which is set:")
        yield named
        return
    tried.append("TIERCEL_LIBRARY, which is not set")
    here = Path(__file__).resolve().parent
    yield from _above(here, "this module", tried)
    origin = _installed_from()
    if origin is not None:
        yield from _above(origin, "what pip installed it from", tried)
    yield SONAME  # wherever the loader looks: LD_LIBRARY_PATH, what ldconfig lists
    yield from _of_pkg_config(tried)


def _above(place: Path, what: str, tried: List[str]) -> Iterator[str]:
    """In the prefix that the place lies in, at whatever depth."""
    tried.append(f"lib, lib64 and lib/* of the folders above {place} ({what})")
    for prefix in place.parents:
        for pattern in (f"lib/{SONAME}", f"lib64/{SONAME}", f"lib/*/{SONAME}"):
            for path in sorted(prefix.glob(pattern)):
                yield str(path)


def _installed_from() -> Optional[Path]:
    """The folder that pip was given, PREFIX/share/tiercel/python say: pip notes it (PEP 610)."""
    try:
        noted = importlib.metadata.distribution("tiercel").read_text("direct_url.json")
        url = urlparse(json.loads(noted or "{}")["url"])
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return None
    return Path(url2pathname(url.path)) if url.scheme == "file" else None


def _of_pkg_config(tried: List[str]) -> Iterator[str]:
    """Last, as it starts a program: of use where a prefix was installed and ldconfig not run."""
    command = ["pkg-config", "--variable=libdir", "tiercel"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        tried.append(f"pkg-config: {error}")
        return
    folder = result.stdout.strip()
    if result.returncode != 0 or not folder:
        tried.append("pkg-config: it knows no tiercel; PKG_CONFIG_PATH could name lib/pkgconfig")
        return
    yield str(Path(folder).resolve() / SONAME)
