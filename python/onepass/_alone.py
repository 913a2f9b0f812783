"""Refuses to be imported by another than the main interpreter of a process: loading the core there waits for ever."""

import importlib
import sys

try:
    _interpreters = importlib.import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
except ImportError:  # a Python without others
    pass
else:
    if _interpreters.get_current() != _interpreters.get_main():
        raise ImportError("onepass does not support loading in subinterpreters, as NumPy does not: use the main one")
