#!/usr/bin/env bash
# Installs what a build needs, on Debian 12 and Ubuntu 22.04 (with a newer CMake) or
# later. Says nothing when nothing is to do.
#
#   tools/setup.sh            compiler, CMake, libraries
#   tools/setup.sh --tests    Python that can build a package as well, which one test needs
#   tools/setup.sh --fuzz     clang and its fuzzer runtime as well
set -euo pipefail

packages=(
  cmake ninja-build g++ pkg-config
  libtbb-dev libhwloc-dev nlohmann-json3-dev libcli11-dev libfmt-dev libpcre2-dev libutf8proc-dev
  libxxhash-dev libeigen3-dev libedit-dev libboost-dev libgtest-dev libbenchmark-dev
)
with_tests=0 with_fuzz=0
for argument in "$@"; do
  case $argument in
    --tests) with_tests=1 ;;
    --fuzz) with_fuzz=1 ;;
    *) echo "setup.sh: expected --tests or --fuzz, found $argument" >&2; exit 2 ;;
  esac
done

# oneDNN's package has had two names. Its header says whether one of them is installed.
have_onednn() {
  [[ -e /usr/include/dnnl.hpp || -e /usr/include/oneapi/dnnl/dnnl.hpp ]]
}
# The system's Python, or the one that comes first in the path. Wheels are part of setuptools since 70.
can_build_python_packages() {
  local python
  for python in python3 /usr/bin/python3; do
    "$python" -c 'import venv, pip, setuptools.build_meta
try: import setuptools.command.bdist_wheel
except ImportError: import wheel' 2>/dev/null && return
  done
  return 1
}
is_installed() {
  dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}
is_offered() {
  # No pipe into grep -q: apt-cache, cut off by it, would make the pipeline fail now and then.
  [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

# Ubuntu 22.04's CMake is too old for the presets.
check_cmake() {
  local found
  found=$(cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
  if [[ -z $found || $(printf '%s\n' 3.25 "$found" | sort -V | head -n 1) != 3.25 ]]; then
    echo "setup.sh: expected CMake 3.25 or newer, found ${found:-none}; this helps: snap install cmake --classic" >&2
    exit 1
  fi
}

# Without a package manager only the tools themselves can be looked for.
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  missing=()
  for tool in cmake ninja g++ pkg-config; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if ((${#missing[@]})); then
    echo "setup.sh: this system has no apt-get. Please install with its own package manager:" >&2
    echo "  ${missing[*]}, and the libraries oneTBB, oneDNN, hwloc, nlohmann-json, CLI11, fmt, PCRE2," >&2
    echo "  utf8proc, xxHash, Eigen 3, GoogleTest (with headers)" >&2
    exit 1
  fi
  check_cmake
  exit 0
fi

if ((with_fuzz)); then
  # libFuzzer's runtime carries the version of the clang that it belongs to.
  packages+=(clang)
fi
if ((with_tests)) && ! can_build_python_packages; then
  packages+=(python3-pip python3-setuptools python3-wheel)
fi

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
need_onednn=0
have_onednn || need_onednn=1
fuzz_runtime() {
  local major
  major=$(clang --version 2>/dev/null | sed -n 's/.*clang version \([0-9]*\).*/\1/p' | head -n 1)
  [[ -n $major ]] && echo "libclang-rt-$major-dev"
}
if ((with_fuzz)) && command -v clang >/dev/null; then
  runtime=$(fuzz_runtime || true)
  if [[ -n $runtime ]] && ! is_installed "$runtime"; then missing+=("$runtime"); fi
fi
if ! ((${#missing[@]} || need_onednn)); then
  check_cmake
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    ((need_onednn)) && missing+=(libdnnl-dev)
    echo "setup.sh: not root, and there is no sudo. Please run as root:" >&2
    echo "  apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
run_apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >&2
}
run_apt update || echo "setup.sh: the package lists could not be refreshed; trying with those at hand" >&2
if ((need_onednn)); then
  if is_offered libdnnl-dev; then missing+=(libdnnl-dev); else missing+=(libonednn-dev); fi
fi
echo "setup.sh: installing ${missing[*]}" >&2
if ! run_apt install -y --no-install-recommends "${missing[@]}"; then
  echo "setup.sh: installing failed. Please install by hand: ${missing[*]}" >&2
  exit 1
fi
if ((with_fuzz)); then
  runtime=$(fuzz_runtime || true)
  if [[ -n $runtime ]] && ! is_installed "$runtime" && is_offered "$runtime"; then
    run_apt install -y --no-install-recommends "$runtime"
  fi
fi
if ! have_onednn; then
  echo "setup.sh: oneDNN's header dnnl.hpp is still missing" >&2
  exit 1
fi
check_cmake
