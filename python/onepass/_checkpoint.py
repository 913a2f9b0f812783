"""Checkpoints: whether a state dict fits an optimizer, and state dicts as files.

A file is a plain ``.npz``: each array of state under ``state/<index>/<name>``, all else as JSON in ``onepass``.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from reprlib import repr as short  # what a file holds may be long
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from . import schedules
from ._checks import plural
from ._storage import LOW_DTYPES, check_scales, in_storage

Array = npt.NDArray[Any]
StateDict = Mapping[str, Any]
PathLike = str | os.PathLike[str]

VERSION = 1
MANIFEST = "manifest.json"  # of a folder that ShardedOptimizer wrote
CHECKSUMS = "params_crc32"  # the optional key of the parameters' checksums in a state dict
_CHUNK = 1 << 16  # bytes: what is copied at once stays in cache
_LONGEST = 1 << 20  # bytes: more than the longest schedule takes
_SCALARS = "onepass.npy"  # the member that holds all but the arrays
_HEADER = re.compile(rb"\{'descr': '([^']{,20})', 'fortran_order': (True|False), 'shape': \(([\d, ]{,999})\), \} *\n")


class _Stored(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    dtype: str
    fortran_order: bool
    start: int  # bytes before its numbers


# ---- Does it fit? ----


def check(state_dict: StateDict, like: StateDict) -> None:
    """Refuse a state dict that an optimizer whose own is `like` could not take.

    Option values are only checked to be plain (numbers, strings, None, sequences of numbers).

    Raises:
        TypeError: something is of the wrong type.
        ValueError: something is missing, unknown, or of another optimizer, version, number, name, shape or dtype.
    """
    _check_type("a state dict", state_dict, Mapping, "a mapping")
    version, optimizer = (state_dict.get(name, like[name]) for name in ("version", "optimizer"))
    _check_type("version", version, int, "an integer")
    if version != like["version"]:
        newer = "it was written by a newer onepass: " * (version > like["version"])
        raise ValueError(f"{newer}version must be {like['version']}, got {short(version)}")
    _check_type("optimizer", optimizer, str, "a string")
    if optimizer != like["optimizer"]:
        raise ValueError(
            f"checkpoint is for {short(optimizer)}, not {like['optimizer']!r}: load it into an optimizer of the same "
            "class"
        )
    _check_keys("the state dict", {name: state_dict[name] for name in state_dict if name != CHECKSUMS}, like)
    for name in ("step_count", "skipped"):
        _check_count(name, state_dict[name])
    _check_type("param_groups", state_dict["param_groups"], (list, tuple), "a list")
    _check_length("group", state_dict["param_groups"], like["param_groups"])
    for index, (group, own) in enumerate(zip(state_dict["param_groups"], like["param_groups"])):
        _check_names(group, own)
        _check_keys(f"group {index}", group, own)
        for name, value in group.items():
            _check_option(f"{name} of group {index}", name, value, own[name])
    _check_type("state", state_dict["state"], Mapping, "a mapping")
    _check_length("parameter", state_dict["state"], like["state"])
    _check_keys("state", state_dict["state"], like["state"])
    labels = _labels(like)
    checksums = state_dict.get(CHECKSUMS, [0] * len(labels))
    if not isinstance(checksums, list) or [type(one) for one in checksums] != [int] * len(labels):
        raise ValueError(f"{CHECKSUMS} must be a list of {plural(len(labels), 'integer')}, got {short(checksums)}")
    for index, own in like["state"].items():
        found = state_dict["state"][index]
        if isinstance(found, Mapping) and "param" in found and "param" not in own:  # loaded only on request
            found = {name: found[name] for name in found if name != "param"}
        elif isinstance(found, Mapping) and "param" in own and "param" not in found:
            raise ValueError("the state dict holds no parameters: use state_dict(params=True)")
        if isinstance(found, Mapping) and (
            reason := _other_options(own.keys() - found.keys(), found.keys() - own.keys())
        ):
            raise ValueError(f"the state of {labels[index]}: {reason}")
        _check_keys(f"the state of {labels[index]}", found, own)
        for name, mine in own.items():
            _check_entry(f"{name} of {labels[index]}", name, found[name], mine)


def upgraded(state_dict: Any) -> Any:
    """Return a state dict with today's options.

    In earlier versions ``ema_decay`` was ``ema``, and there were no options of storage and no seed.
    """
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        return state_dict
    new = [_upgraded_group(group) for group in groups]
    if all(group is old for group, old in zip(new, groups)):
        return state_dict
    return {"seed": 0, **state_dict, "param_groups": new}


def _upgraded_group(group: Mapping[str, Any]) -> Mapping[str, Any]:
    if not _EARLIER_STORAGE.keys() & group.keys():
        group = {**group, **_EARLIER_STORAGE}
    if "ema" in group and "ema_decay" not in group:
        group = {"ema_decay" if key == "ema" else key: value for key, value in group.items()}
    return group


_EARLIER_STORAGE = {"state_dtype": None, "master_bits": 32, "rounding": "stochastic"}


def _check_type(label: str, value: Any, kinds: Any, what: str) -> None:
    if not isinstance(value, kinds) or (kinds is int and isinstance(value, bool)):
        raise TypeError(f"{label} must be {what}, got {short(value)}")


def _check_keys(label: str, found: Any, wanted: Iterable[Any]) -> None:
    _check_type(label, found, Mapping, "a mapping")
    missing, unknown = [key for key in wanted if key not in found], sorted(found.keys() - set(wanted), key=repr)
    if missing or unknown:
        wrong = [f"lacks {short(missing)}"] * bool(missing) + [f"has unknown {short(unknown)}"] * bool(unknown)
        raise ValueError(f"{label} {' and '.join(wrong)}")


def _other_options(missing: Iterable[Any], unknown: Iterable[Any]) -> str:
    """Return the reason if an option explains why arrays are missing or unknown, else an empty string."""
    options = {"max_exp_avg_sq": "amsgrad", "ema": "ema_decay", "momentum_buffer": "momentum", "grad_avg": "centered"}
    if "param_low" in unknown:
        return (
            "it holds the lower bits of bfloat16 parameters, which would be lost: create the optimizer with bfloat16 "
            "parameters and the same master_bits, 32 or 24"
        )
    for name in sorted(missing, key=str):
        if name in options:
            return f"it was saved without {options[name]}: create the optimizer without {options[name]}"
    for name in sorted(unknown, key=str):
        if name in options:
            return f"it was saved with {options[name]}: create the optimizer with {options[name]}"
    return ""


def _check_length(what: str, found: Any, wanted: Any, where: str = "") -> None:
    if len(found) != len(wanted):
        raise ValueError(f"it holds {plural(len(found), what)}{where}, the optimizer has {len(wanted)}")


def _check_names(group: Any, own: Mapping[str, Any]) -> None:
    """Say in words what is wrong where one side's parameters have names and the other's have none."""
    if not isinstance(group, Mapping) or group.keys() ^ own.keys() != {"param_names"}:
        return
    if "param_names" in own:
        raise ValueError(
            "checkpoint is for parameters without names, but this optimizer's have names: make the optimizer with an "
            "array or a sequence, as it was when that was saved"
        )
    raise ValueError(
        f"checkpoint is for parameters with names, {short(group['param_names'])}, but this optimizer's have none: "
        "make the optimizer with a mapping, as it was when that was saved"
    )


def _check_count(label: str, value: Any) -> None:
    _check_type(label, value, int, "an integer")
    if not 0 <= value <= 2**62:  # far from where the core's 64-bit counts end
        raise ValueError(f"{label} must be at least 0 and at most 2**62, got {short(value)}")


def _check_option(label: str, name: str, value: Any, own: Any) -> None:
    if name in ("params", "param_names"):
        _check_type(label, value, (list, tuple), "a list")
        _check_length("parameter", value, own, f" in {label}")
        for index, (item, mine) in enumerate(zip(value, own)):
            _check_type(f"{label}, item {index},", item, type(mine), f"{mine!r}")
            if item != mine:
                what = "the name of" if name == "param_names" else "the index of"
                raise ValueError(
                    f"{what} parameter {index} of its group: expected {mine!r}, got {short(item)} in the checkpoint"
                )
    elif isinstance(value, Mapping) and name in ("lr", "ema_decay"):
        try:
            schedules.from_description(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{label} is no schedule: {error}") from None
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_type(f"an item of {label}", item, (int, float), "a number")
    else:
        _check_type(label, value, (int, float, str, type(None)), "a number, a string or None")


def _check_entry(label: str, name: str, value: Any, own: Any) -> None:
    if isinstance(own, np.ndarray):
        kinds = () if isinstance(value, np.ma.MaskedArray) else (np.ndarray, _Stored)
        _check_type(label, value, kinds, "a NumPy array")
        dtype = value.dtype if isinstance(value, _Stored) else value.dtype.str
        if dtype != own.dtype.str:
            if name == "param_low" and dtype in _MASTER_BITS:
                bits = _MASTER_BITS[own.dtype.str]
                found = _MASTER_BITS[dtype]
                raise ValueError(
                    f"{label}: expected the lower bits of master_bits={bits}, got master_bits={found}: create the "
                    f"optimizer with master_bits={found}"
                )
            of = "the parameter's dtype" if own.dtype.kind == "f" else "dtype"
            raise ValueError(f"{label}: expected {of} {_dtype_name(own.dtype.str)}, got {_dtype_name(dtype)}")
        if value.shape != own.shape:
            raise ValueError(f"{label} must have shape {own.shape}, got {value.shape}")
        if name.endswith("_scale") and isinstance(value, np.ndarray):
            check_scales(label, value, own.size)
    elif name == "step":
        _check_count(label, value)
    else:
        _check_type(label, value, float, "a float")
        if not math.isfinite(value):
            raise ValueError(f"{label} must be finite, got {value!r}")


_MASTER_BITS = {np.dtype(dtype).str: bits for bits, dtype in LOW_DTYPES.items()}
_DTYPE_NAMES = {"<f4": "float32", "<f8": "float64", "<u2": "bfloat16 (as uint16)", "|u1": "float8 (as uint8)"}


def _dtype_name(dtype: str) -> str:
    return _DTYPE_NAMES.get(dtype, dtype)


def _labels(like: StateDict) -> dict[int, str]:
    """What to call each parameter."""
    labels = {index: f"parameter {index}" for index in like["state"]}
    for group in like["param_groups"]:
        labels |= {i: f"parameter {i} ({name!r})" for i, name in zip(group["params"], group.get("param_names", ()))}
    return labels


# ---- The two halves of a file ----


def arrays(state_dict: StateDict) -> list[Array]:
    """All arrays of state."""
    return [*_arrays(state_dict).values()]


def _arrays(state_dict: StateDict) -> dict[tuple[int, str], Array]:
    """All arrays of state, by parameter and name."""
    states = sorted(state_dict["state"].items())
    return {(i, name): x for i, state in states for name, x in sorted(state.items()) if isinstance(x, np.ndarray)}


def _scalars(state_dict: StateDict) -> bytes:
    """All the rest, as JSON."""
    states = [state for _, state in sorted(state_dict["state"].items())]
    numbers = [{name: x for name, x in state.items() if not isinstance(x, np.ndarray)} for state in states]
    return json.dumps({**state_dict, "state": numbers}, sort_keys=True).encode()


def _member(index: int, name: str) -> str:
    return f"state/{index}/{name}.npy"


# ---- Writing ----


def write(path: PathLike, state_dict: StateDict) -> None:
    """Write a state dict to one ``.npz`` file at exactly this path.

    At every moment, also after a crash, the path holds the whole old file or the whole new one. A process that is
    killed while it writes may leave a file ``.onepass-*.tmp`` beside it, which can be deleted.
    """
    members = {_SCALARS: np.frombuffer(_scalars(state_dict), np.uint8)}
    members |= {_member(*key): array for key, array in _arrays(state_dict).items()}
    with replaced(path) as file:
        _write_archive(file, members)


@contextmanager
def replaced(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write what the path shall hold when the block has ended; if it raises, the path is as it was."""
    target = Path(os.path.realpath(os.fsdecode(path)))  # a symbolic link stays one
    mode = _mode(target)
    temporary = target.with_name(f".onepass-{secrets.token_hex(8)}.tmp")
    try:
        with _opened(temporary, target) as file:
            if mode is not None:
                temporary.chmod(mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def _opened(temporary: Path, target: Path) -> IO[bytes]:
    """Open a new file; report errors under the target's name."""
    try:
        return temporary.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _mode(target: Path) -> int | None:
    """The permissions of the file that will be replaced, if there is one."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # /dev/null must not be replaced
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "Not a regular file", str(target))
    return stat.S_IMODE(mode)


def _write_archive(file: IO[bytes], members: Mapping[str, Array]) -> None:
    archive = zipfile.ZipFile(file, "w")
    try:
        for name, array in members.items():
            _write_array(archive, name, array)
        archive.close()
    except BaseException:
        archive.fp = None  # or closing it would complain, in the place of what happened, of the member that is open
        raise


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    info = zipfile.ZipInfo(name)  # of 1980, so that equal states give equal files
    info.create_system = 3  # on Windows too
    header = npy.header_data_from_array_1_0(array)
    numbers = array.ravel(order="F" if header["fortran_order"] else "C").view(np.uint8)
    with archive.open(info, "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, header)
        for start in range(0, numbers.size, _CHUNK):
            # a copy, so that checksum and file agree whatever another thread does to the array
            member.write(numbers[start : start + _CHUNK].tobytes())


def _flush_folder(folder: Path) -> None:
    """Make a renaming outlive a loss of power, where folders can be opened (not on Windows) and flushed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EBADF, errno.EINVAL):
            raise


# ---- Reading ----


def read(
    path: PathLike,
    like: StateDict,
    take: Callable[[int, str, Array], Any] = lambda index, name, array: array,
    rooms: Callable[[list[Array]], Iterable[Array]] = lambda arrays: map(np.empty_like, arrays),
    any_storage: bool = True,
) -> dict[str, Any]:
    """Read a state dict that an optimizer whose own is `like` can take.

    Names, shapes, dtypes and sizes are checked before the first array is allocated, every checksum is verified, and
    nothing in the file is evaluated or unpickled. What is kept of an array is what `take` makes of its parameter's
    index, its name and itself; `rooms` says where arrays like these are read to. any_storage: moments may be stored in
    more or in fewer bits than the optimizer's own.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, was not written by `write`, or does not fit.
    """
    name = os.fsdecode(path)
    with _opened_to_read(name) as file:
        try:
            file.longest = _LONGEST + 4 * len(_scalars(like)) + 256 * len(_arrays(like))
            with zipfile.ZipFile(file) as archive:
                return _load(archive, like, take, rooms, any_storage)
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises a dozen kinds
            detail = str(error) or type(error).__name__
            if type(error) not in (TypeError, ValueError):  # not what this module has to say
                detail = f"the file is damaged, or no checkpoint ({detail})"
            raise ValueError(f"cannot load {name!r}: {detail}") from error


def _opened_to_read(name: str) -> _BoundedReader:
    try:
        return _BoundedReader(name)
    except OSError:
        if not (Path(name) / MANIFEST).is_file():
            raise
    why = "It is the folder of a ShardedOptimizer: load it with one, or have one save with gathered=True"
    raise IsADirectoryError(errno.EISDIR, why, name)


class _BoundedReader(io.FileIO):
    """File with a limit on single reads, against directories of a million members and huge metadata."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.longest:
            raise ValueError(f"its directory or {_SCALARS} has {size} bytes, at most {self.longest} are needed")
        return super().read(size) or b""


def _load(
    archive: zipfile.ZipFile,
    like: StateDict,
    take: Callable[[int, str, Array], Any],
    rooms: Callable[[list[Array]], Iterable[Array]],
    any_storage: bool,
) -> dict[str, Any]:
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("duplicate archive member")
    if _SCALARS not in infos:
        raise ValueError(f"not a onepass checkpoint (missing member {_SCALARS!r})")
    found = _load_scalars(archive, infos[_SCALARS])
    like = _stored_like(like, found, infos) if any_storage else like
    wanted = {_member(*key): (*key, own) for key, own in _arrays(like).items()}
    params = {_member(index, "param") for index in like["state"]}
    if params <= wanted.keys() and not params & infos.keys():
        raise ValueError("it was saved without parameters: use save(path, params=True)")
    for member, (index, name, _) in wanted.items():
        if member in infos and isinstance(found["state"].get(index), dict):
            found["state"][index][name] = _read_header(archive, infos[member])
    check(found, like)
    if unknown := infos.keys() - {_SCALARS} - wanted.keys() - params:
        reason = _other_options([], [member.rpartition("/")[2].removesuffix(".npy") for member in unknown])
        raise ValueError(reason or f"it has unknown members {short(sorted(unknown))}")
    for member, (index, name, own) in wanted.items():
        if infos[member].file_size != found["state"][index][name].start + own.nbytes:
            raise ValueError(f"{member} has {infos[member].file_size} bytes, wrong for {own.shape} {own.dtype}")
    arrays = [_in_file_order(own, found["state"][index][name]) for index, name, own in wanted.values()]
    for (member, (index, name, _)), room in zip(wanted.items(), rooms(arrays)):
        array = _read_array(archive, infos[member], found["state"][index][name], room)
        found["state"][index][name] = take(index, name, array)
    for group in found["param_groups"]:
        options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        group |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    return found


def _stored_like(like: StateDict, found: dict[str, Any], members: Iterable[str]) -> StateDict:
    """Return the optimizer's own state dict with arrays as in the file, which may store them otherwise."""
    saved = found.get("param_groups")
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        return like
    states = dict(like["state"])
    for own, group in zip(like["param_groups"], saved):
        for index in own["params"]:
            states[index] = in_storage(states[index], group)
            # param_low: missing with float32 parameters or master_bits=16; y: missing in training mode
            for name in ("param_low", "y"):
                if _member(index, name) not in members:
                    states[index].pop(name, None)
    return {**like, "state": states}


def _load_scalars(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> dict[str, Any]:
    """The state dict without its arrays."""
    stored = _read_header(archive, info)
    with archive.open(info) as member:
        found = json.loads(_exactly(member, info.file_size)[stored.start :])
    if not isinstance(found, dict) or not isinstance(found.get("state"), list):
        raise ValueError(f"{info.filename} holds no state dict")
    found = {**found, "state": dict(enumerate(found["state"]))}
    return upgraded(found)  # type: ignore[no-any-return]


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Stored:
    """The header of a plain array. NumPy's own reader evaluates it, and of a damaged one warns or runs out of stack."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed; onepass checkpoints are stored uncompressed")
    with archive.open(info) as member:
        magic = _exactly(member, npy.MAGIC_LEN)
        length = int.from_bytes(_exactly(member, 2), "little")
        match = _HEADER.fullmatch(_exactly(member, length))
    if magic != npy.magic(1, 0) or match is None:
        raise ValueError(f"{info.filename} does not have the header of a plain array")
    dtype, fortran_order, shape = match.groups()
    numbers = tuple(int(number) for number in shape.split(b",") if number.strip())
    return _Stored(numbers, dtype.decode("ascii"), fortran_order == b"True", npy.MAGIC_LEN + 2 + length)


def _in_file_order(own: Array, stored: _Stored) -> Array:
    """Return an array like the optimizer's own; float8 numbers in the file's order, in which their scales are."""
    if own.dtype != np.uint8 or own.ndim < 2 or stored.fortran_order != own.flags.c_contiguous:
        return own
    return np.empty(own.shape, own.dtype, "F" if stored.fortran_order else "C")


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, stored: _Stored, array: Array) -> Array:
    """Fill an array in its own order, whatever the file's."""
    view = array.T if stored.fortran_order else array
    flat = view.reshape(-1) if view.flags.c_contiguous else view.flat  # in the file's order
    with archive.open(info) as member:
        _exactly(member, stored.start)
        for start in range(0, array.size, _CHUNK // array.itemsize):
            stop = min(start + _CHUNK // array.itemsize, array.size)
            flat[start:stop] = np.frombuffer(_exactly(member, (stop - start) * array.itemsize), array.dtype)
    return array


def _exactly(member: IO[bytes], size: int) -> bytes:
    """The next bytes. With the last ones, zipfile verifies the checksum."""
    data = member.read(size)
    if len(data) != size:
        raise EOFError(f"{member.name} ends too early")
    return data
