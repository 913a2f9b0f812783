"""Entry point of the ranks in the tests of onepass.integrations.mpi: mpiexec -n N python ranks.py [CHECK ...]

All ranks run each check of the modules ranks_*.py; rank 0 prints its name when all have passed. A check that fails on
any rank ends all ranks.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import ranks_checkpoint
import ranks_errors
import ranks_step
import ranks_storage
from ranks_common import WORLD

MODULES = ranks_step, ranks_errors, ranks_checkpoint, ranks_storage
FUNCTIONS: dict[str, Callable[[], None]] = {k: v for module in MODULES for k, v in vars(module).items()}


def main() -> None:
    checks = {name.removeprefix("check_"): f for name, f in FUNCTIONS.items() if name.startswith("check_")}
    for name in sys.argv[1:] or checks:
        try:
            checks[name]()
        except BaseException:
            print(f"rank {WORLD.rank} in {name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            WORLD.Abort(1)
            os._exit(1)  # Abort may return before the process ends, and a later line would print that the check passed
        WORLD.Barrier()
        if WORLD.rank == 0:
            print(f"passed {name}", flush=True)


if __name__ == "__main__":
    expected = int(os.environ.get("RANKS", WORLD.size))  # another MPI's mpiexec starts as many worlds of one rank
    assert expected == WORLD.size, f"there are {WORLD.size} ranks, not {expected}"
    deaths = ("save_and_die", "load_after_death", "step_and_die")
    FUNCTIONS[sys.argv[1]]() if sys.argv[1:] and sys.argv[1] in deaths else main()
