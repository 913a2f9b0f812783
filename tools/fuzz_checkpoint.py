"""Coverage-guided fuzzing of checkpoints: whatever a file holds, it is refused with ValueError or loads what it says.

    PYTHONPATH=tests python -m tools.fuzz_checkpoint [libFuzzer's options] [folders of inputs]

An input is a choice of the optimizer (its first byte) and the bytes of a file. `make fuzz-checkpoint SECONDS=60` runs
it from tests/persistence/corpus on; test_checkpoint_corpus.py replays that folder without libFuzzer.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fuzz_target import Target


def main() -> None:
    """Fuzz until libFuzzer stops."""
    # Coverage of these guides the fuzzer: the readers of files, of the archive and of the metadata.
    import json.decoder

    import atheris

    from onepass import _archive, _checkpoint, _checks, _group, _optimizer, _state_check

    readers: list[Any] = [
        _checkpoint,
        _archive,
        _state_check,
        _group,
        _checks,
        zipfile.ZipFile,
        zipfile.ZipExtFile,
        zipfile.ZipInfo,
        zipfile,
    ]
    for reader in [*readers, json.decoder, _optimizer.Optimizer]:
        for name, value in list(vars(reader).items()):
            own = getattr(value, "__module__", "") in (
                getattr(reader, "__name__", ""),
                getattr(reader, "__module__", ""),
            )
            if own and hasattr(value, "__code__") and (reader is not _optimizer.Optimizer or "load" in name):
                atheris.instrument_func(value)

    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
