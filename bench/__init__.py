"""Benchmarks: how fast onepass is, beside other ways to take the same step.

``python -m bench`` runs all of them, ``--list`` names them, ``--case NAME`` runs one. Where what stands:

- `peer`, `peers`, `libraries`: who is measured: what a peer is; onepass, NumPy and Python; other libraries.
  **A new peer** is one class there and its place in ``PEERS`` of `cases`: with that it is checked, timed in every case
  that takes all peers, listed with its version, printed and drawn.
- `cases`: what is measured, and the bars it is held against. **A new case** is one entry of ``CASES``.
- `measure`: how: the check before, the interleaved rounds, medians and ratios. `training`: a whole training.
- `loop`: steps and whole iterations in training loops of PyTorch and NumPy.
- `environment`: the process of each case, and its variables.
- `machine`, `records`: on what, and what the results file holds.
- `report`, `readme`, `plots`: the results as a table, as the blocks of README and docs/benchmarks.md, as images.
- `guard`: no time at all, but the instructions that the hot loops take, counted: what noise cannot hide.

Nothing here fails a test run: a bar that is missed is reported. Only a peer that computes something else is an error.
"""
