"""Benchmarks of onepass and of other ways to take the same step.

``python -m bench`` runs all cases, ``--list`` names them, ``--case NAME`` runs one.

- `peer`, `peers`, `libraries`, `adapters`: the peers: their base class; onepass, NumPy and Python; other libraries;
  onepass behind other libraries' interfaces. **A new peer** is one class there and its place in ``PEERS`` of `cases`:
  then it is checked, timed in every case that takes all peers, listed with its version, printed and drawn.
- `cases`: the cases and their targets. **A new case** is one entry of ``CASES``.
- `run`, `targets`: how a case is run, and how its targets are judged.
- `measure`: checks, interleaved rounds, medians and ratios. `loop`: training loops. `training`: a complete training
  run. `distributed`: several processes, and state on disk.
- `environment`: the process of each case, and its variables.
- `machine`, `records`: the machine, and the contents of the results files.
- `report`, `readme`, `plots`: the results as text for a terminal, as blocks of README and docs, and as images.

Nothing here fails a test run: a missed target is reported. Only a peer with wrong results is an error.
"""
