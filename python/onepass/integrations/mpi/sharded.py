"""Optimizer with its state divided among ranks."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import _checkpoint, _checks, _state_check, _storage
from ..._conversion import warn_of_losses
from ..._gradients import nonfinite_gradient
from ..._group import Group
from ..._optimizer import Optimizer
from ..._options import OPTIMIZER_CHECKS
from ..._params import GroupParams, label, normalize_params, parts_of_params
from ..._state_dict import check_names, in_own_storage, prepare_load, with_checksums
from ..._types import Array, Form, LearningRate, Nonfinite, Params, Schedule
from .. import needed
from .agreement import OPTIONS, Fingerprint, refusal, together
from .checkpoint import read_path, save_set
from .communicator import dup_comm, share_processors
from .exchange import Gradients, allgather, check_gradients, combine_blocks, create_buffers, reduce_scatter, reserve
from .layout import create_layout, create_record, describe_option, fingerprint_of, part_of, piece_groups
from .state import (
    StateDict,
    gather_states,
    group_options,
    split_state_dict,
    splitter,
    state_names,
    whole_schema,
    whole_state_dict,
)

with needed("mpi4py", "mpi"):
    from mpi4py import MPI


class ShardedOptimizer:
    r"""Optimizer with its state divided among the ranks of a communicator.

    Every rank creates the optimizer with the same arguments and with parameters of equal values, and passes its own
    gradients to each `step`. All ranks then have the same new weights in the arrays of their parameters. For any number
    of ranks and with every option, including ``clip_norm``, the result is bit-identical to the result of one process
    with the reduced gradients. (MPI chooses the order in which it adds the gradients of several ranks, which may
    depend on their number.)

    A rank keeps the state and the gradient of its share. The size of a share differs from the mean by at most one block
    of 4,096 elements. Parameters made by `onepass.flatten`, and gradients in one array per dtype with the same layout,
    are sent without copies; other arrays are copied through a buffer of one chunk.

    Gradients are added up in the dtype of their parameter, or in float32 for a bfloat16 parameter, because MPI has no
    bfloat16. Gradients of other dtypes are converted chunk by chunk before they are sent.

    All ranks must call methods that are marked as collective. If a rank fails or is interrupted, or if the ranks
    disagree or call different methods, before anything has changed, then all ranks raise and no rank waits for another.

    On a node with several ranks, each rank uses its part of the processors, unless the environment or a call of
    `onepass.set_num_threads` sets the number of threads.

    Args:
        comm: an intracommunicator of mpi4py, such as ``MPI.COMM_WORLD``. The optimizer uses a duplicate, which is freed
            when a later optimizer is created on the same communicator, or when that communicator is freed.
        kind: the class of the optimizer, such as `onepass.AdamW`.
        params: as in `Adam`, including groups. All ranks pass the same parameters in the same order.
        average: True: step along the mean of the ranks' gradients; False: along their sum. The division is part of the
            step.
        chunk: the minimum number of elements that are sent at once, up to 2**26. With many ranks, a chunk is larger, so
            that the share of each rank has at least two blocks. Smaller chunks cost more messages.
        options: the options of the optimizer.

    Raises:
        TypeError, ValueError: as the optimizer; RuntimeError: another rank raised; ValueError: ranks disagree on
            parameters, their shapes, dtypes, order or values, or on options.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020), stage 1.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        kind: type[Optimizer],
        params: Params,
        *,
        average: bool = True,
        chunk: int = 1 << 22,
        **options: Any,
    ) -> None:
        """Create the optimizer. Collective. See the class."""
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm: expected an mpi4py intracommunicator, got {type(comm).__name__}")
        self._comm = dup_comm(comm)
        self._lock = threading.RLock()
        self._broken = False
        with together(self._comm, "ShardedOptimizer") as fingerprint:
            _check_kind(kind)
            self._average = _checks.flag("average", average)
            chunk = _check_chunk(chunk)
            form, groups = normalize_params(params)
            record = create_record(form, isinstance(params, tuple), groups)
            _check_storage(form, groups, options)
            layout = create_layout(record, [len(named) for named, _ in groups], comm.size, comm.rank, chunk)
            own_groups = piece_groups(layout, groups)
            weights = [array for group in own_groups for array in group["params"]]
            with parts_of_params([*zip(weights, (part_of(layout, piece) for piece in layout.pieces))]):
                self._optimizer = kind(own_groups, **options)
            self._layout = replace(layout, record=replace(record, groups=self._optimizer.groups))
            self._buffers = create_buffers(self._layout, comm.rank)
            fingerprint |= fingerprint_of(self._layout, self._optimizer, average=self._average, chunk=chunk)
        share_processors(self._comm)

    def _check_usable(self) -> None:
        if self._broken:
            raise RuntimeError("a previous step or load failed part-way on this rank: create a new optimizer")

    # ---- Stepping ----

    def step(self, grads: Any, grad_scale: float = 1.0) -> None:
        """Update the parameters of all ranks in place, along the mean or sum of the ranks' gradients. Collective.

        Args:
            grads: this rank's gradients, as an ordinary optimizer's ``step`` takes them, except `SparseRows`. They are
                read, not changed. A gradient that is ``None`` must be ``None`` on all ranks.
            grad_scale: a factor for every gradient, the same on all ranks.

        Raises:
            TypeError, ValueError, FloatingPointError: as the ordinary optimizer; ValueError: ranks disagree on
                ``grad_scale``, on options, on values of schedules, or on which gradients are None; RuntimeError:
                another rank raised. Nothing has changed, on any rank.
        """
        with self._lock:
            error: BaseException | None = None
            fingerprint: Fingerprint = {}
            try:
                gradients, scale = self._prepare(grads, grad_scale, fingerprint)
            except BaseException as failed:  # also interrupts: the other ranks wait for this rank
                error = failed
            was_broken, self._broken = self._broken, True  # past this point, a failing rank leaves the others waiting
            refused = refusal(self._comm, "step", error, fingerprint)
            if refused is not None:
                self._broken = was_broken
                raise refused
            reduce_scatter(self._comm, self._layout, self._buffers, gradients)
            norm, nonfinite = self._measure(scale, fingerprint)
            if nonfinite is not None and fingerprint["nonfinite"] == "raise":
                self._broken = False  # nothing has changed, on any rank
                raise nonfinite_gradient(self._layout.record, nonfinite)
            if self._optimizer._commit_step(norm, nonfinite):
                allgather(self._comm, self._layout, self._buffers, gradients)
            self._broken = False

    def _prepare(self, grads: Any, grad_scale: float, fingerprint: Fingerprint) -> tuple[Gradients, float]:
        """Do all work that can fail on only this rank, without visible changes."""
        self._check_usable()
        layout, buffers, optimizer = self._layout, self._buffers, self._optimizer
        given_scale = _checks.finite("grad_scale", grad_scale)
        scale = given_scale / self._comm.size if self._average else given_scale
        gradients = check_gradients(layout, grads)
        reserve(layout, buffers, gradients)
        missing = [index for index, array in enumerate(gradients.arrays) if array is None]
        fingerprint |= {
            "step": optimizer.step_count + 1,
            "None as": str([layout.record.gradient_label(index) for index in missing]),
            "grad_scale": given_scale,
            "clip_norm": optimizer.clip_norm,  # before schedules run: their changes of options apply to the next step
            "nonfinite": optimizer.nonfinite,
        }
        own = zip(layout.pieces, buffers.gradients)
        reduced = [None if gradients.arrays[piece.parameter] is None else gradient for piece, gradient in own]
        fingerprint[OPTIONS] = optimizer._prepare_step(reduced, scale)
        return gradients, scale

    def _measure(self, scale: float, fingerprint: Fingerprint) -> tuple[float, int | None]:
        """Return the global norm and the first gradient that is not finite, if an option needs them."""
        finite = fingerprint["nonfinite"] != "propagate"
        if fingerprint["clip_norm"] is None and not finite:
            return 0.0, None
        blocks = self._optimizer._measure_step()
        return combine_blocks(self._comm, self._layout, self._buffers, blocks, scale, finite)

    # ---- Saving and loading ----

    def gather_ema(self) -> Any:
        """Return the gathered running averages in the parameters' form; None without ``ema_decay``. Collective.

        Raises:
            MemoryError: no room; RuntimeError: another rank raised.
        """
        with self._lock:
            averaged = self._optimizer.groups[0].ema_decay is not None
            states = self._gather("gather_ema", ["ema"] if averaged else [])
            return self._layout.record.like_input([state["ema"] for state in states]) if averaged else None

    def state_dict(self) -> StateDict:
        """Return the state dict of an ordinary optimizer, gathered on every rank. Collective.

        Raises:
            MemoryError: no room; RuntimeError: another rank raised.
        """
        with self._lock:
            states = self._gather("state_dict", state_names(self._optimizer))
            return whole_state_dict(self._layout, self._optimizer, states)

    def _gather(self, call: str, names: list[str]) -> list[dict[str, Array]]:
        with together(self._comm, call):
            self._check_usable()
        return gather_states(self._comm, self._layout, self._optimizer, call, names)

    def load_state_dict(self, state_dict: Mapping[str, Any], **options: Any) -> None:
        """Load the `state_dict` of this or an ordinary optimizer, which all ranks pass. Collective.

        Warns, as the ordinary optimizer does, if the conversion to this optimizer's storage loses bits of weights.

        Args:
            options: options that replace those of the state dict, in every group: the same on all ranks.

        Raises:
            TypeError, ValueError: as the ordinary optimizer's; RuntimeError: another rank raised. Nothing has changed,
                unless a rank failed while it loaded the checked state: the optimizer can then no longer be used.
        """

        def read() -> StateDict:
            state = _state_check.upgraded(state_dict)
            own, folder = whole_schema(self._layout, self._optimizer), self._optimizer._state_folder
            whole, conversion = in_own_storage(self._layout.record, state, own, folder)
            warn_of_losses([conversion])
            return split_state_dict(self._layout, self._optimizer, whole, splitter(self._layout))

        self._load("load_state_dict", read, options)

    def save(self, path: str | os.PathLike[str], *, gathered: bool = False) -> None:
        """Write the state atomically, as an ordinary optimizer does, to a folder that all ranks see. Collective.

        Each rank writes a file with its share; then rank 0 writes ``manifest.json``, which names the files, and deletes
        the files of older sets. Whenever a process dies, the folder contains one complete set: the old or the new set.

        Args:
            path: path of the folder, which is created if necessary.
            gathered: write an ordinary optimizer's file at this path instead: rank 0 gathers the state of all ranks and
                must have enough memory for it.

        Raises:
            OSError: the files could not be written; RuntimeError: another rank raised. Either the previous files are
                still there, or the folder could not be flushed and the new set may not survive a power failure.
        """
        with self._lock:
            with together(self._comm, "save") as fingerprint:
                self._check_usable()
                fingerprint["gathered"] = bool(gathered)
                folder = Path(os.fsdecode(path))
            if not gathered:
                return save_set(self._comm, self._layout, self._optimizer, folder)
            names = state_names(self._optimizer)
            states = gather_states(self._comm, self._layout, self._optimizer, "save", names, root=0)
            with together(self._comm, "save"):
                if self._comm.rank == 0:
                    whole = whole_state_dict(self._layout, self._optimizer, states)
                    _checkpoint.write(path, with_checksums(self._layout.record, whole))

    def load(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Load a checkpoint of `save` from any number of ranks, or an ordinary optimizer's file. Collective.

        Does not load parameters. Warns if an ordinary file was saved with other values of the parameters, and if the
        conversion to this optimizer's storage loses bits of weights.

        Args:
            options: options that replace those of the checkpoint, in every group: the same on all ranks.

        Raises:
            OSError: the checkpoint could not be read; `FileNotFoundError` if the checkpoint or its manifest is missing.
            ValueError: the checkpoint is damaged, was not written by onepass, or does not fit the optimizer.
            RuntimeError: another rank raised. Nothing has changed, unless a rank failed while it loaded the checked
                state: the optimizer can then no longer be used.
        """
        self._load("load", lambda: read_path(self._layout, self._optimizer, path), options)

    def _load(self, call: str, read: Callable[[], StateDict], options: Mapping[str, Any]) -> None:
        with self._lock:
            with together(self._comm, call) as fingerprint:
                self._check_usable()
                check_names(call, self._optimizer, options)
                found = read()
                prepare_load(self._optimizer, found, options)
                groups = [group_options(group) for group in found["param_groups"]]
                shared = _checkpoint._scalars({**found, "state": {}, "param_groups": groups})
                fingerprint["checkpoint"] = zlib.crc32(shared)
                checks = {**self._optimizer._spec.checks, **OPTIMIZER_CHECKS}
                fingerprint["options"] = [
                    describe_option(name, checks[name](name, value)) for name, value in sorted(options.items())
                ]
            self._broken = True  # until all ranks have loaded the state
            with together(self._comm, call):
                self._optimizer.load_state_dict(found, **options)
            self._broken = False

    # ---- Attributes of an ordinary optimizer ----

    @property
    def optimizer(self) -> Optimizer:
        """The ordinary optimizer of this rank's share. Use it to inspect ``state``; do not call its ``step``.

        Its parameters are the pieces in `share`, in the same order.
        """
        return self._optimizer

    @property
    def share(self) -> list[tuple[Any, int, int]]:
        """The pieces of this rank's share: a parameter's name or index, and the start and end in its memory."""
        return [(self._layout.record.keys[index], start, stop) for index, start, stop, _ in self._layout.pieces]

    @property
    def params(self) -> Any:
        """The parameters in the form in which they were passed; with groups, one list of all parameters."""
        return self._layout.record.like_input(self._layout.record.params)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups. Set options equally on all ranks. The ``params`` of a group are pieces of this rank's share."""
        return self._optimizer.groups

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """Alias of `groups`, with PyTorch's name."""
        return self._optimizer.groups

    @property
    def lr(self) -> float | Schedule:
        """The learning rate of the only group, as in an ordinary optimizer. Set it equally on all ranks."""
        return self._optimizer.lr

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        self._optimizer.lr = value

    @property
    def clip_norm(self) -> float | None:
        """The limit of the gradients' global norm, or None. Set it equally on all ranks."""
        return self._optimizer.clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._optimizer.clip_norm = value

    @property
    def nonfinite(self) -> Nonfinite:
        """The treatment of gradients that are not finite. Set it equally on all ranks."""
        return self._optimizer.nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite) -> None:
        self._optimizer.nonfinite = value

    @property
    def flush_denormals(self) -> bool:
        """True if subnormal numbers count as zero while stepping."""
        return self._optimizer.flush_denormals

    @property
    def seed(self) -> int:
        """The seed of stochastic rounding, saved with the state."""
        return self._optimizer.seed

    @property
    def step_count(self) -> int:
        """The number of steps applied so far."""
        return self._optimizer.step_count

    @property
    def skipped(self) -> int:
        """The number of steps skipped because a gradient was not finite."""
        return self._optimizer.skipped

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step's reduced gradients before clipping, if ``clip_norm`` is set."""
        return self._optimizer.grad_norm

    def __repr__(self) -> str:
        return f"ShardedOptimizer(rank {self._comm.rank} of {self._comm.size}, {self._optimizer!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a ShardedOptimizer belongs to its communicator and cannot be copied or pickled: use save")


def _check_kind(kind: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(f"kind: expected an optimizer class such as onepass.AdamW, got {kind!r}")
    if kind is not Optimizer and kind._spec.evaluation_weight is not None:
        raise ValueError(
            f"kind: expected an optimizer without eval(), got {kind.__name__} (it would change only this "
            "rank's share of the parameters)"
        )


def _check_storage(form: Form, groups: list[GroupParams], options: Mapping[str, Any]) -> None:
    """Refuse parameters that cannot have narrow state: the optimizer of the pieces would number them differently."""
    for named, own in groups:
        labelled = [(label(form, key), array) for key, array in named.items()]
        _storage.check_params({"state_dtype": None, **options, **own}, labelled, flush_denormals=True)


def _check_chunk(chunk: Any) -> int:
    number = _checks.integer("chunk", chunk)
    if number < 1:
        raise ValueError(f"chunk: expected at least 1, got {_checks.shown(number)}")
    return number
