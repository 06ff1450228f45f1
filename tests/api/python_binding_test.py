"""The Python module against the C header, and how it finds the library. Run by python_test.py."""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from ctypes import POINTER, c_char_p, c_int32, c_void_p

import tiercel
from tiercel import _abi


class Binding(unittest.TestCase):
    """The module against the header, and how it finds the library."""

    HEADER = pathlib.Path(__file__).parents[2] / "engine" / "tiercel_c.h"
    NUMBERS = {"int": ctypes.c_int, "int32_t": c_int32, "int64_t": ctypes.c_int64,
               "size_t": ctypes.c_size_t, "double": ctypes.c_double, "float": ctypes.c_float,
               "tiercel_status": c_int32, "tiercel_finish": c_int32,
               "tiercel_log_level": c_int32, "void": None}
    CALLBACKS = {"tiercel_progress_callback": _abi.PROGRESS_CALLBACK,
                 "tiercel_piece_callback": _abi.PIECE_CALLBACK,
                 "tiercel_log_callback": _abi.LOG_CALLBACK}

    @classmethod
    def as_ctypes(cls, declared, is_result=False):
        """What ctypes calls a C type; a parameter's name is left out."""
        stars = declared.count("*")
        words = re.findall(r"\w+", declared.replace("const", ""))
        if not is_result:
            words = words[:1]  # behind it, the name
        (name,) = words
        if name in cls.CALLBACKS:
            return cls.CALLBACKS[name]
        if name == "char":  # what is given out is to be freed, so that ctypes may not copy it
            is_given = stars == 2 and declared.count("const") == 0
            return c_char_p if stars == 1 else POINTER(c_void_p if is_given else c_char_p)
        if name not in cls.NUMBERS or (name == "void" and stars):  # a handle
            name, stars, found = "", stars - 1, c_void_p
        else:
            found = cls.NUMBERS[name]
        for _ in range(stars):
            found = POINTER(found)
        return found

    def test_every_function_of_the_header_has_its_prototype(self):
        text = re.sub(r"/\*.*?\*/", " ", self.HEADER.read_text(), flags=re.S)
        declared = {}
        for result, name, arguments in re.findall(
            r"^TIERCEL_C_API ([^;(]*?)(tiercel_\w+)\(([^)]*)\);", text, re.M
        ):
            types = [] if arguments == "void" else [self.as_ctypes(a) for a in arguments.split(",")]
            declared[name] = (self.as_ctypes(result, True), types)
        self.assertEqual(len(declared), text.count("\nTIERCEL_C_API "))
        table = _abi._PROTOTYPES
        self.assertEqual(declared.keys() - table.keys(), set())
        self.assertEqual(table.keys() - declared.keys(), set())
        for name, (result, arguments) in declared.items():
            self.assertEqual(table[name], (result, arguments), name)

    def import_of(self, package_folder, **environment):
        env = {k: v for k, v in os.environ.items() if k != "TIERCEL_LIBRARY"}
        env.update(environment, PYTHONPATH=str(package_folder))
        return subprocess.run(
            [sys.executable, "-B", "-c", "import tiercel; print(tiercel._abi.library._name)"],
            env=env, capture_output=True, text=True, check=False)

    def test_a_missing_library_is_explained(self):
        here = pathlib.Path(tiercel.__file__).parent
        result = self.import_of(here.parent, TIERCEL_LIBRARY="/nowhere/libtiercel.so")
        self.assertEqual(result.returncode, 1)
        self.assertIn("TIERCEL_LIBRARY, which is set", result.stderr)
        self.assertIn("/nowhere/libtiercel.so", result.stderr)
        self.assertNotIn("pkg-config", result.stderr)
        # A module of a library that nobody has installed.
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "tiercel"
            shutil.copytree(here, copy, ignore=shutil.ignore_patterns("__pycache__"))
            code = (copy / "_library.py").read_text()
            self.assertEqual(code.count('"libtiercel.so.0.1"'), 1)
            (copy / "_library.py").write_text(code.replace("libtiercel.so.0.1", "libtiercel.so.x"))
            for environment in ({}, {"PATH": "/nowhere"}, {"PKG_CONFIG_PATH": folder}):
                result = self.import_of(folder, **environment)
                self.assertEqual(result.returncode, 1)
                for tried in ("TIERCEL_LIBRARY, which is not set", f"folders above {copy}",
                              "libtiercel.so.x: cannot open", "pkg-config",
                              "name the file in TIERCEL_LIBRARY"):
                    self.assertIn(tried, result.stderr)

    def test_places_of_the_library(self):
        built = os.environ["TIERCEL_LIBRARY"]
        with tempfile.TemporaryDirectory() as folder:
            prefix = pathlib.Path(folder).resolve()
            python = prefix / "share" / "tiercel" / "python"
            shutil.copytree(pathlib.Path(tiercel.__file__).parent, python / "tiercel",
                            ignore=shutil.ignore_patterns("__pycache__"))
            for place in ("lib", "lib64", "lib/x86_64-linux-gnu"):
                (prefix / place).mkdir(parents=True, exist_ok=True)
                library = prefix / place / "libtiercel.so.0.1"
                library.symlink_to(os.path.realpath(built))
                self.assertEqual(self.import_of(python).stdout, f"{library}\n")
                named = self.import_of(python, TIERCEL_LIBRARY=built)
                self.assertEqual(named.stdout, f"{built}\n")
                library.unlink()
