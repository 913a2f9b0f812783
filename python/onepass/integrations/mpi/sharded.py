"""The optimizer whose state is divided among ranks."""

from __future__ import annotations

import operator
import threading
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import _checks, _core
from ..._allocate import address
from ..._flatten import in_line, one_array
from ..._gradients import arrange, checked_gradient
from ..._group import Group
from ..._optimizer import Optimizer
from ..._options import OPTIMIZER_CHECKS
from ..._params import Form, as_list, normalize_params
from ..._types import Array, LearningRate, Nonfinite, Params, Schedule
from ...optimizers import SGD
from ...sparse import SparseRows
from .. import needed
from .agreement import OPTIONS, agree, by_rank, displacements, own_comm, share_processors
from .checkpoint import Saved
from .partition import Piece, owners, shared_out

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

_kept: list[Any] = []  # what MPI may still read and write for steps that broke off


class ShardedOptimizer(Saved):
    r"""An optimizer whose state is divided among the ranks of a communicator.

    Every rank makes it with the same arguments and parameters of equal values, and hands its own gradients to each
    `step`; all ranks then have the same new weights, in the arrays that they handed over. For any number of ranks the
    bits are those of one process that is handed the reduced gradients, with every option, ``clip_norm`` too. (The order
    in which MPI adds the gradients of several ranks is MPI's, and may depend on their number.)

    A rank keeps the state of its share, equal among ranks to within one block of 4,096 elements of the mean, and that
    share's gradient. Parameters made by `onepass.flatten`, and gradients that lie likewise in one array per dtype, are
    sent as they are; others are gathered into and scattered from buffers of two chunks.

    While one chunk is stepped, the next ones are being reduced and those before gathered; with ``clip_norm`` or
    ``nonfinite`` all gradients are reduced first.

    Methods named as collective must be called by all ranks. Where one of them fails or is interrupted, ranks disagree,
    or one calls another of these methods, before anything has changed, all of them raise, and none waits for another.

    On a node with several ranks each uses its part of the processors, unless the environment or a call of
    `onepass.set_num_threads` says how many threads to use.

    Args:
        comm: an intracommunicator of mpi4py, say ``MPI.COMM_WORLD``. What is used is a duplicate of it,
            the optimizer's own. It is freed
            when a later optimizer is made on the same communicator, or that is freed.
        kind: the optimizer, say `onepass.AdamW`.
        params: as in `Adam`, groups too. All ranks have the same, in the same order.
        average: step along the mean of the ranks' gradients; False: along their sum. The division is part of the step.
        chunk: how many elements are sent at once, at least; more where there are so many ranks that a share of it would
            be less than two blocks. Smaller chunks cost more messages, larger ones leave less to overlap: see
            ``docs/distributed.md`` for what was measured.
        options: those of the optimizer.

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
        """Collective."""
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an mpi4py intracommunicator, got {type(comm).__name__}")
        self._comm = own_comm(comm)
        self._lock = threading.RLock()
        self._broken = False
        self._requests: dict[tuple[str, int], MPI.Request] = {}  # chunks on their way
        error: BaseException | None = None
        said: dict[str, Any] = {}
        try:
            said = self._make(kind, params, average, chunk, options)
        except BaseException as failed:  # an interrupt too: the others wait for this rank
            error = failed
        agree(self._comm, "ShardedOptimizer", error, said)
        share_processors(self._comm)

    def _make(self, kind: Any, params: Params, average: bool, chunk: int, options: dict[str, Any]) -> dict[str, Any]:
        """What a rank does alone at construction; what all ranks must say alike."""
        if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
            raise TypeError(f"kind must be an optimizer class such as onepass.AdamW, got {kind!r}")
        self._average = _checks.flag("average", average)
        try:
            chunk = operator.index(chunk)
        except TypeError:
            raise TypeError(f"chunk must be an integer, got {chunk!r}") from None
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")

        given: Any = params if isinstance(params, (np.ndarray, Mapping, tuple)) else as_list("params", params)
        form, groups = normalize_params(given)
        if not isinstance(given, (np.ndarray, Mapping)) and any(isinstance(item, Mapping) for item in given):
            own_params = [named if form is Form.mapping else [*named.values()] for named, _ in groups]
            given = [{"params": each} for each in own_params]
        # It has no state, and knows the parameters' names, forms and errors.
        self._whole = SGD(given, lr=0.0)
        self._params = [np.asarray(array) for array in self._whole._record.params]
        self._orders: list[Any] = ["C" if array.flags.c_contiguous else "F" for array in self._params]
        kinds = [(array.dtype, array.size) for array in self._params]
        ranks, rank = self._comm.size, self._comm.rank
        self._chunks = shared_out(kinds, ranks, chunk)
        self._flat = {dtype: one_array(self._params, dtype) for dtype in dict.fromkeys(dtype for dtype, _ in kinds)}
        self._lines = [in_line(array) for array in self._params]
        spans = sorted((address(array), address(array) + array.nbytes) for array in self._params if array.size)
        self._starts, self._stops = [start for start, _ in spans], [stop for _, stop in spans]

        # The share: its pieces, by parameter, each an ordinary optimizer's parameter. No elements of a parameter are a
        # piece too, so that every rank has every group and counts every parameter's steps.
        own: list[list[tuple[int, Piece]]] = [[] for _ in self._params]
        for k, each in enumerate(self._chunks):
            for piece in each.share(rank):
                own[piece.parameter].append((k, piece))
        for index, pieces in enumerate(own):
            if not pieces:
                pieces.append((-1, Piece(index, 0, 0, 0)))
        placed = [each for pieces in own for each in pieces]
        self._first = [0, *np.cumsum([len(pieces) for pieces in own]).tolist()]  # of each parameter's pieces
        self._group_of = [g for g, (named, _) in enumerate(groups) for _ in named]
        self._pieces = [piece for _, piece in placed]
        self._parts: list[list[int]] = [[] for _ in self._chunks]  # the pieces of each chunk
        for index, (k, _) in enumerate(placed):
            if k >= 0:
                self._parts[k].append(index)
        inner, first = [], 0
        for named, changed in groups:
            mine = [piece for pieces in own[first : first + len(named)] for _, piece in pieces]
            first += len(named)
            inner.append({"params": [self._lines[p][start:stop] for p, start, stop, _ in mine], **changed})
        self._optimizer = kind(inner, **options)

        # Room for the share's gradient, and for two chunks where parameters or gradients lie scattered.
        self._gradient: list[Array] = [np.empty(0)] * len(self._pieces)
        self._share: list[Array] = []
        for each, part in zip(self._chunks, self._parts):
            begin, end = each.cuts[rank : rank + 2]
            self._share.append(np.zeros(end - begin, each.dtype))
            for index in part:
                _, start, stop, at = self._pieces[index]
                self._gradient[index] = self._share[-1][at - begin : at - begin + stop - start]
        for index, (_, start, stop, _) in enumerate(self._pieces):
            if start == stop:
                self._gradient[index] = np.empty(0, self._params[self._pieces[index].parameter].dtype)
        self._sending: dict[tuple[Any, int], Array] = {}
        self._taking: dict[tuple[Any, int], Array] = {}

        # Where each rank's blocks of the norm belong.
        found = owners(kinds, ranks, self._chunks)
        self._block_order = np.argsort(found, kind="stable")
        self._block_rooms = np.empty((2, len(found), 2))
        self._rank_blocks = np.bincount(found, minlength=ranks)
        self._block_counts = [-(-array.size // _core.norm_block) for array in self._params]

        labels = [self._whole._record.label(index) for index in range(len(self._params))]
        return {
            "optimizer": kind.__name__,
            "parameters": [
                f"{label} of shape {array.shape}, {array.dtype}, {order} order"
                for label, array, order in zip(labels, self._params, self._orders)
            ],
            "sizes of groups": str([len(named) for named, _ in groups]),
            "options": [
                *(each for index, group in enumerate(self._optimizer.groups) for each in _said(index, group)),
                *(f"{name}={getattr(self._optimizer, name)!r}" for name in OPTIMIZER_CHECKS),
                f"average={self._average}",
                f"chunk={chunk}",
            ],
            "values": [
                f"values in {label} that differ from rank 0 (broadcast them first, as with comm.Bcast): checksum "
                f"{zlib.crc32(line.view(np.uint8)):08x}"
                for label, line in zip(labels, self._lines)
            ],
        }

    # Stepping.

    def step(self, grads: Any, grad_scale: float = 1.0) -> None:
        """Update the parameters of all ranks in place, along the mean or sum of the ranks' gradients. Collective.

        Args:
            grads: this rank's gradients, as an ordinary optimizer's ``step`` takes them, except `SparseRows`. They are
                read, not changed. ``None`` must be None on all ranks.
            grad_scale: a factor for every gradient, the same on all ranks.

        Raises:
            TypeError, ValueError, FloatingPointError: as the ordinary optimizer's; ValueError: ranks disagree on which
                gradients are None, on ``grad_scale``, on options or what schedules say; RuntimeError: another rank
                raised. Nothing has changed, on any rank.
        """
        with self._lock:
            self._agreed, self._changing = False, False
            try:
                self._check_whole()
                self._reducing = 0  # how many chunks are being reduced, or have been
                self._requests = {}
                self._take(grads, grad_scale)
                mine = [None if self._missing[piece.parameter] else g for piece, g in zip(self._pieces, self._gradient)]
                skipped = self._optimizer.skipped
                self._optimizer._step_in_parts(mine, self._scale, self._parts, self)
                if self._optimizer.skipped == skipped:
                    self._finish()
            except BaseException as error:
                if not self._agreed:
                    agree(self._comm, "step", error, {})
                if self._requests and not self._broken:
                    _kept.append((self._requests, self._share, self._sending, self._taking, self._flat))
                    _kept.append((self._given, self._given_flat, self._comm))
                self._broken = self._broken or self._changing
                raise
            finally:
                self._given: list[Array | None] = []
                self._given_flat: dict[Any, Array | None] = {}

    def _check_whole(self) -> None:
        if self._broken:
            raise RuntimeError("a previous step or load failed part-way on this rank: create a new optimizer")

    def _take(self, grads: Any, grad_scale: float) -> None:
        """Check this rank's gradients."""
        whole, record = self._whole, self._whole._record
        self._scale = _checks.finite("grad_scale", grad_scale) / (self._comm.size if self._average else 1)
        arranged = [grads] if record.form is Form.array else arrange(record, grads)
        self._missing = [grad is None for grad in arranged]
        self._given = []
        for index, grad in enumerate(arranged):
            if not record.params[index].flags.writeable:
                whole._parameter_changed(index, True)
            if grad is None:
                self._given.append(None)
                continue
            label = record.gradient_label(index)
            if isinstance(grad, SparseRows):
                raise TypeError(f"{label} is given by rows, which ranks cannot share: pass the whole gradient")
            array = checked_gradient(label, grad, record.shapes[index])
            self._given.append(array.copy() if self._overlaps(array) else array)
        self._given_flat = {}
        for dtype in self._flat:
            own = [(g, p, o) for g, p, o in zip(self._given, self._params, self._orders) if p.dtype == dtype]
            lies_so = all(
                g is not None and g.dtype == dtype and (g.flags.c_contiguous if o == "C" else g.flags.f_contiguous)
                for g, _, o in own
            )
            self._given_flat[dtype] = one_array([g for g, _, _ in own if g is not None], dtype) if lies_so else None
        for k, chunk in enumerate(self._chunks):  # while what fails here still fails on all ranks
            if self._is_stepped(k) and self._given_flat[chunk.dtype] is None:
                self._room(self._sending, k)
            if self._is_stepped(k) and self._flat[chunk.dtype] is None:
                self._room(self._taking, k)

    def _overlaps(self, array: Array) -> bool:
        """Whether a gradient may share memory with a parameter, which changes while gradients are still being read."""
        if not array.flags.forc:
            return any(np.may_share_memory(array, line) for line in self._lines)
        k = bisect_left(self._starts, address(array) + array.nbytes)  # those from here on begin behind it
        return k > 0 and self._stops[k - 1] > address(array)

    # What _core.Optimizer._step_in_parts calls.

    def _agree(self, digest: int, whole: bool) -> None:
        """All is ready on this rank; wait until it is on the others."""
        optimizer = self._optimizer
        missing = [self._whole._record.gradient_label(index) for index, none in enumerate(self._missing) if none]
        said = {
            "step": optimizer.step_count + 1,
            "None as": str(missing),
            "grad_scale": self._scale * (self._comm.size if self._average else 1),
            "clip_norm": optimizer.clip_norm,
            "nonfinite": optimizer.nonfinite,
            OPTIONS: digest,
        }
        self._agreed = self._changing = True  # past this point, a failing rank leaves the others waiting
        try:
            agree(self._comm, "step", None, said)
        except (RuntimeError, ValueError) as refused:  # on all ranks, unless MPI itself failed
            self._changing = isinstance(refused, MPI.Exception)
            raise
        self._reduce_up_to(2)
        for k in range(len(self._chunks) if whole else 0):
            self._reduced(k)

    def _measured(self, blocks: Array) -> tuple[float, int | None]:
        """What the blocks of all ranks say together, given this rank's: the norm, and which gradient is not finite."""
        gathered, ordered = self._block_rooms
        counts = 2 * self._rank_blocks
        self._comm.Allgatherv(blocks, [gathered, (counts, displacements(counts))])
        ordered[self._block_order] = gathered
        finite = self._optimizer.nonfinite != "propagate"
        norm, first = _core.total(ordered, self._block_counts, self._scale, finite)
        if first is not None and self._optimizer.nonfinite == "raise":
            self._changing = False  # nothing has, on any rank
            self._whole._nonfinite_gradient(first)
        return norm, first

    def _ready(self, k: int) -> None:
        """Chunk k is about to be stepped, and the one before it has been."""
        if k:
            self._hand_out(k - 1)
        self._reduced(k)

    def _finish(self) -> None:
        """All chunks have been stepped."""
        if self._chunks:
            self._hand_out(len(self._chunks) - 1)
        for k in range(len(self._chunks)):
            self._handed_out(k)

    # The chunks on their way.

    def _is_stepped(self, k: int) -> bool:
        return any(not self._missing[piece.parameter] for piece in self._chunks[k].pieces)

    def _reduce_up_to(self, end: int) -> None:
        """Start reducing the gradients of the chunks before this one."""
        while self._reducing < min(end, len(self._chunks)):
            k = self._reducing
            self._reducing += 1
            if self._is_stepped(k):
                chunk = self._chunks[k]
                flat = self._given_flat[chunk.dtype]
                mine = self._packed(k) if flat is None else flat[chunk.start : chunk.start + chunk.size]
                self._requests["reduce", k] = MPI.REQUEST_NULL  # what is interrupted here counts as begun
                self._requests["reduce", k] = self._comm.Ireduce_scatter(mine, self._share[k], chunk.counts())

    def _reduced(self, k: int) -> None:
        """Wait for the gradient of a chunk's share."""
        request = self._requests.get(("reduce", k))
        if request is not None:
            request.Wait()
            del self._requests["reduce", k]
        self._reduce_up_to(k + 3)  # into room that is now free

    def _packed(self, k: int) -> Array:
        """The gradients of this rank for a chunk, in one array."""
        chunk = self._chunks[k]
        room = self._room(self._sending, k)
        for index, start, stop, at in chunk.pieces:
            grad = self._given[index]
            if grad is not None:
                part = in_line(grad, self._orders[index])[start:stop]
                with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
                    np.copyto(room[at : at + stop - start], part, casting="same_kind")
        return room

    def _room(self, rooms: dict[tuple[Any, int], Array], k: int) -> Array:
        """Room for a chunk, shared with every second one before it."""
        dtype, size = self._chunks[k].dtype, self._chunks[k].size
        if (dtype, k % 2) not in rooms:
            rooms[dtype, k % 2] = np.zeros(max(chunk.size for chunk in self._chunks if chunk.dtype == dtype), dtype)
        return rooms[dtype, k % 2][:size]

    def _hand_out(self, k: int) -> None:
        """Start gathering the new weights of a chunk from those who stepped them."""
        if not self._is_stepped(k):
            return
        chunk = self._chunks[k]
        flat = self._flat[chunk.dtype]
        if flat is not None:
            room = flat[chunk.start : chunk.start + chunk.size]
        else:
            for kind, other in list(self._requests):
                if kind == "gather" and other % 2 == k % 2:
                    self._handed_out(other)
            room = self._room(self._taking, k)
            for index, start, stop, at in chunk.share(self._comm.rank):
                room[at : at + stop - start] = self._lines[index][start:stop]
        self._requests["gather", k] = MPI.REQUEST_NULL
        self._requests["gather", k] = self._comm.Iallgatherv(MPI.IN_PLACE, by_rank(room, chunk.counts()))

    def _handed_out(self, k: int) -> None:
        """Wait for the new weights of a chunk."""
        request = self._requests.get(("gather", k))
        if request is None:
            return
        request.Wait()
        del self._requests["gather", k]
        chunk = self._chunks[k]
        if self._flat[chunk.dtype] is None:
            room = self._room(self._taking, k)
            for index, start, stop, at in chunk.pieces:
                if not self._missing[index]:
                    self._lines[index][start:stop] = room[at : at + stop - start]

    # What an ordinary optimizer says of itself.

    @property
    def optimizer(self) -> Optimizer:
        """The ordinary optimizer that steps this rank's share: to look at its ``state``, not to be stepped by hand.

        Its parameters are the pieces that `share` names, in the same order.
        """
        return self._optimizer

    @property
    def share(self) -> list[tuple[Any, int, int]]:
        """The elements of this rank's share: a parameter's name or index, and where in its memory they begin, end."""
        return [(self._whole._record.keys[index], start, stop) for index, start, stop, _ in self._pieces]

    @property
    def params(self) -> Any:
        """The parameters, in the form in which they came; with groups one list of all."""
        return self._whole.params

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, to read and set their options, alike on all ranks. Their ``params`` are pieces of this share."""
        return self._optimizer.groups

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The same as `groups`, under PyTorch's name."""
        return self._optimizer.groups

    @property
    def lr(self) -> float | Schedule:
        """The learning rate of the only group, as an ordinary optimizer's; to be set alike on all ranks."""
        return self._optimizer.lr

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        self._optimizer.lr = value

    @property
    def clip_norm(self) -> float | None:
        """What the global norm of the gradients is scaled down to; to be set alike on all ranks."""
        return self._optimizer.clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._optimizer.clip_norm = value

    @property
    def nonfinite(self) -> Nonfinite:
        """What becomes of a step whose gradients are not finite; to be set alike on all ranks."""
        return self._optimizer.nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite) -> None:
        self._optimizer.nonfinite = value

    @property
    def flush_denormals(self) -> bool:
        """Whether subnormal numbers count as zero while stepping."""
        return self._optimizer.flush_denormals

    @property
    def step_count(self) -> int:
        """The number of steps applied so far."""
        return self._optimizer.step_count

    @property
    def skipped(self) -> int:
        """The number of steps left out because of gradients that ``nonfinite`` refuses."""
        return self._optimizer.skipped

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step's reduced gradients before clipping, where ``clip_norm`` is set."""
        return self._optimizer.grad_norm

    def __repr__(self) -> str:
        return f"ShardedOptimizer(rank {self._comm.rank} of {self._comm.size}, {self._optimizer!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a ShardedOptimizer belongs to its communicator and cannot be copied or pickled: use save")


def _said(index: int, group: Group) -> list[str]:
    """A group's options; of a function only that it is one."""
    return [f"{name}={'a function' if callable(x) else repr(x)} in group {index}" for name, x in group._values.items()]
