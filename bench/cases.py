"""Cases: the problems and peers that are measured, and the targets.

To add a case, add an entry to ``CASES``. It should take less than a minute; cases of a gigabyte take two, and cases of
training loops four.
"""

from __future__ import annotations

from dataclasses import replace

import onepass

from . import distributed, loop, narrow, report, training
from .adapters import OnepassThinc, OnepassTorch, TorchNoOptimizer
from .libraries import (
    DeepSpeed,
    Numba,
    Optax,
    ScheduleFree,
    ScikitLearn,
    Thinc,
    ThincOptimizer,
    TorchClipAverage,
    TorchDefault,
    TorchForeach,
    TorchFused,
)
from .machine import cores
from .measure import Budget
from .peer import RULES, Peer, Problem
from .peers import (
    InPlaceNumPy,
    NoOptimizer,
    Onepass,
    OnepassAllThreads,
    OnepassClipAverage,
    OnepassFlat,
    OnepassKeepsSubnormals,
    OnepassOneThread,
    OnepassSparse,
    PurePython,
    StreamBaseline,
    TextbookNumPy,
    TextbookNumPyFreshMemory,
)
from .records import CaseRecord, Statistic
from .run import Case, run
from .targets import FurtherTensor, Target

TORCH = (TorchFused, TorchForeach, TorchDefault)
FUSED = (TorchFused, DeepSpeed, Numba, Optax)  # one pass over memory, or nearly
NUMPY_LOOP = (Onepass, OnepassOneThread, OnepassAllThreads, Numba, InPlaceNumPy, TextbookNumPy)
# In the order of the tables.
PEERS = (
    Onepass,
    StreamBaseline,
    Numba,
    *TORCH,
    DeepSpeed,
    Optax,
    Thinc,
    InPlaceNumPy,
    ScikitLearn,
    TextbookNumPy,
    PurePython,
)

of = Problem.of
HUNDRED, MANY = of(100), of(100, tensors=148)
TEN_THOUSAND = of(10_000)
CLIP = of(10**7, rule="AdamW")
MILLION, MILLION_ON_TWO = of(10**6), of(10**6, threads=2)
LARGE, LARGE_ON_TWO = of(64 * 10**6), of(64 * 10**6, threads=2)
MILLION_64, MILLION_64_ON_TWO = of(10**6, dtype="float64"), of(10**6, dtype="float64", threads=2)
LARGE_64, LARGE_64_ON_TWO = of(64 * 10**6, dtype="float64"), of(64 * 10**6, dtype="float64", threads=2)


def gpt2(threads: int) -> Problem:
    """The parameters of GPT-2 small, in the order of its checkpoint."""
    width, layers, positions, words = 768, 12, 1024, 50257
    norm = (width, width)
    attention = (width * 3 * width, 3 * width, width * width, width)
    feed_forward = (width * 4 * width, 4 * width, 4 * width * width, width)
    sizes = (words * width, positions * width, *(norm + attention + norm + feed_forward) * layers, *norm)
    return Problem(sizes, threads=threads, label=f"GPT-2 small's {len(sizes)} tensors")


def table(rows: int, width: int) -> Problem:
    """A table, such as an embedding, with rows of this many elements."""
    label = f"{report.count(rows)} rows of {width} element{'s' * (width > 1)}"
    return Problem((rows * width,), rule="Adagrad", width=width, label=label)


GPT2, GPT2_ON_TWO = gpt2(1), gpt2(2)
BITS_IN_CACHE, BITS = of(100_000, rule="AdamW"), of(64 * 10**6, rule="AdamW", threads=cores())
AVX2 = onepass.config()["instruction_set"] != "avx512"  # narrower vectors: other targets for storage in fewer bits
HUNDRED_THOUSAND, SIX_HUNDRED_THOUSAND = of(100_000), of(600_000)
POLICY_LAYERS = (8, 64, 64, 4)
POLICY_ITERATION = loop.policy(POLICY_LAYERS, threads=1)
POLICY = Problem(POLICY_ITERATION.sizes, label="a policy network (8-64-64-4)")
LOOPS = {width: loop.square(width) for width in (64, 128, 272, 512, 1024, 2048)}
TORCH_STEP = {272: 1.3, 512: 1.3, 1024: 1.15, 2048: 1.0}  # targets of a step in PyTorch's loop


def never_slower(kind: type[Peer]) -> tuple[Target, ...]:
    """Targets: whole iterations take no longer than with this peer, at 0.3 to 16.8 million parameters."""
    statistics: tuple[Statistic, ...] = ("median_ns", "mean_ns")
    return tuple(Target(LOOPS[width], (kind,), 1, "iteration", each) for width in TORCH_STEP for each in statistics)


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4 and so on, and the last number itself."""
    return sorted({2**exponent for exponent in range(most.bit_length())} | {most})


CASES: dict[str, Case] = {
    "small": Case(
        "one tensor of 100 and of 1,000: the cost of a call",
        problems=(HUNDRED, of(1_000)),
        peers=(*PEERS, ThincOptimizer),
        targets=(
            Target(HUNDRED, (TorchFused,), 80),
            Target(HUNDRED, (Thinc,), 2),
            Target(HUNDRED, (InPlaceNumPy,), 10),
        ),
    ),
    "many": Case(
        "148 tensors of 100 compared with one: the cost of a further tensor",
        problems=(MANY, HUNDRED),
        peers=(*PEERS[:-1], ThincOptimizer),
        targets=(Target(MANY, (TorchFused,), 60), FurtherTensor(MANY, HUNDRED, 150)),
    ),
    "tensors": Case(
        "1 to 1,000 tensors of 100: the cost against their number",
        problems=tuple(of(100, tensors=10**exponent) for exponent in range(4)),
        peers=(Onepass, StreamBaseline, *TORCH, Thinc, InPlaceNumPy),
    ),
    "pure-python": Case(
        "10 thousand elements compared with a loop over lists",
        problems=(TEN_THOUSAND,),
        peers=(Onepass, StreamBaseline, PurePython),
        targets=(Target(TEN_THOUSAND, (PurePython,), 700),),
    ),
    "million": Case(
        "1 million elements, one thread: in the cache",
        problems=(MILLION,),
        peers=(*PEERS[:-1], TextbookNumPyFreshMemory),
        targets=(
            Target(MILLION, (StreamBaseline,), 0.85),
            Target(MILLION, (TorchFused,), 1.3),
            Target(MILLION, (DeepSpeed,), 1.2),
            Target(MILLION, (TextbookNumPyFreshMemory,), 30),
        ),
        budget=Budget(seconds=24, sessions=16),
    ),
    "million-2": Case(
        "1 million elements, two threads",
        problems=(MILLION_ON_TWO,),
        peers=(Onepass, StreamBaseline, OnepassOneThread, *FUSED),
        targets=(Target(MILLION_ON_TWO, (TorchFused,), 1.5), Target(MILLION_ON_TWO, (OnepassOneThread,), 1.5)),
        budget=Budget(seconds=16, sessions=8),
    ),
    "large": Case(
        "64 million elements, one and two threads: in memory",
        problems=(LARGE, LARGE_ON_TWO),
        peers=(Onepass, StreamBaseline, *FUSED, TextbookNumPy),
        targets=tuple(
            target
            for problem in (LARGE, LARGE_ON_TWO)
            for target in (
                Target(problem, (StreamBaseline,), 0.93),
                Target(problem, FUSED, 0.97),
                Target(problem, (TextbookNumPy,), 9),
            )
        ),
        budget=Budget(seconds=30, sessions=2),
    ),
    "float64": Case(
        "float64: 1 and 64 million elements, one and two threads",
        problems=(MILLION_64, MILLION_64_ON_TWO, LARGE_64, LARGE_64_ON_TWO),
        peers=(Onepass, StreamBaseline, TorchFused, Numba),
        targets=(
            Target(MILLION_64, (StreamBaseline,), 0.85),
            Target(LARGE_64, (StreamBaseline,), 0.93),
            Target(LARGE_64_ON_TWO, (StreamBaseline,), 0.93),
        ),
        budget=Budget(seconds=16, sessions=2),
    ),
    "bits": Case(
        "AdamW with state in float8 compared with float32 and with other libraries' 8 bits, in cache and in memory",
        problems=(BITS_IN_CACHE, BITS),
        peers=(narrow.OnepassFloat8State, Onepass, TorchFused, DeepSpeed, narrow.Bitsandbytes8bit, narrow.Torchao8bit),
        targets=(
            Target(BITS_IN_CACHE, (Onepass,), 1 / 3 if AVX2 else 0.5),
            Target(BITS, (Onepass,), 0.7 if AVX2 else 1),
            Target(BITS, (TorchFused,), 1),
            Target(BITS, (narrow.Bitsandbytes8bit,), 25),
            Target(BITS, (narrow.Torchao8bit,), 20),
        ),
        budget=Budget(seconds=30, sessions=2),
        measure=narrow.measure,
    ),
    "bits-bfloat16": Case(
        "AdamW with state in bfloat16 compared with float32",
        problems=(BITS_IN_CACHE, BITS),
        peers=(narrow.OnepassBfloat16State, Onepass, TorchFused),
        targets=(
            Target(BITS_IN_CACHE, (Onepass,), 1 / 3 if AVX2 else 0.5),
            Target(BITS, (Onepass,), 1.1 if AVX2 else 1.25),
        ),
        budget=Budget(seconds=20, sessions=2),
        measure=narrow.measure,
    ),
    "bits-weights": Case(
        "AdamW with weights and gradients in bfloat16 and state in float8 compared with float32",
        problems=(BITS_IN_CACHE, BITS),
        peers=(narrow.OnepassBfloat16Weights, narrow.OnepassBfloat16Weights24, Onepass, narrow.TorchFusedBfloat16),
        targets=(
            Target(BITS_IN_CACHE, (Onepass,), 1 / 3 if AVX2 else 0.5),
            Target(BITS, (Onepass,), 0.7 if AVX2 else 1),
            Target(BITS, (narrow.TorchFusedBfloat16,), 0.8),
        ),
        budget=Budget(seconds=30, sessions=2),
        measure=narrow.measure,
    ),
    "bits-bandwidth": Case(
        "AdamW with each storage, on one thread and on all: the time compared with the bytes that a step moves",
        problems=tuple(of(64 * 10**6, rule="AdamW", threads=n) for n in sorted({1, cores()})),
        peers=(Onepass, StreamBaseline, *narrow.STORAGES, TorchFused, narrow.TorchFusedBfloat16),
        budget=Budget(seconds=20, sessions=2),
        measure=narrow.measure,
    ),
    "gpt2": Case(
        "the tensors of GPT-2 small, 124 million elements in all, one and two threads",
        problems=(GPT2, GPT2_ON_TWO),
        peers=(Onepass, OnepassFlat, StreamBaseline, *FUSED),
        targets=tuple(
            target
            for problem in (GPT2, GPT2_ON_TWO)
            for target in (Target(problem, FUSED, 0.97), Target(problem, (OnepassFlat,), 0.97))
        ),
        budget=Budget(seconds=30, sessions=2),
    ),
    "threads": Case(
        "1 and 10 million elements on one thread to as many as there are cores",
        problems=tuple(of(size, threads=n) for size in (10**6, 10**7) for n in powers_of_two(cores())),
        peers=(Onepass, StreamBaseline, *FUSED),
        budget=Budget(seconds=8, sessions=4),
    ),
    "clip": Case(
        "10 million elements: AdamW, clipping and averaging in one call compared with three of torch's",
        problems=(CLIP,),
        peers=(OnepassClipAverage, TorchClipAverage),
        targets=(Target(CLIP, (TorchClipAverage,), 1.8),),
        budget=Budget(seconds=24, sessions=6),
    ),
    "rules": Case(
        "every rule on 1 million elements, compared with torch's or its authors' class",
        problems=tuple(of(10**6, dtype=dtype, rule=rule) for dtype in ("float32", "float64") for rule in RULES),
        peers=(Onepass, StreamBaseline, *TORCH, ScheduleFree),
        budget=Budget(seconds=3, sessions=3),
    ),
    "sparse": Case(
        "Adagrad on tables of which a step touches 1,600 rows: sparse gradients compared with dense gradients",
        problems=tuple(table(rows, width) for rows, width in ((20_000, 1), (20_000, 64), (2_000_000, 1))),
        peers=(Onepass, OnepassSparse),
        budget=Budget(seconds=4, sessions=4),
    ),
    "subnormals": Case(
        "100 thousand elements whose state has decayed to subnormal numbers, compared with ordinary state",
        problems=(replace(HUNDRED_THOUSAND, decayed=True), HUNDRED_THOUSAND),
        peers=(Onepass, OnepassKeepsSubnormals, TorchFused, Numba, InPlaceNumPy),
        budget=Budget(seconds=6, sessions=3),
    ),
    "digits": Case(
        "a complete training run of a network in NumPy on handwritten digits, including the network's own work",
        problems=(training.NETWORK,),
        peers=(Onepass, NoOptimizer, TorchFused, Thinc, InPlaceNumPy, ScikitLearn, TextbookNumPy),
        budget=Budget(seconds=30),
        measure=training.measure,
        why_missing=training.why_missing,
    ),
    "torch-policy": Case(
        "a small network in PyTorch: a step through the adapter compared with PyTorch's own",
        problems=(POLICY,),
        peers=(OnepassTorch, *TORCH),
        targets=(Target(POLICY, (TorchFused,), 15),),
    ),
    "torch-training": Case(
        "the same network trained in PyTorch: whole iterations of a batch of 64",
        problems=(POLICY_ITERATION,),
        peers=(OnepassTorch, TorchNoOptimizer, *TORCH),
        targets=(Target(POLICY_ITERATION, (TorchFused,), 1.15), Target(POLICY_ITERATION, (TorchDefault,), 1.6)),
        budget=Budget(seconds=20),
        measure=loop.measure,
    ),
    "loop-torch": Case(
        "in PyTorch's training loop, with default settings: steps and whole iterations of networks of 64 to 2,048 wide",
        problems=tuple(LOOPS.values()),
        peers=(OnepassTorch, *TORCH),
        targets=(
            *(Target(LOOPS[width], (TorchFused,), at_least, "step") for width, at_least in TORCH_STEP.items()),
            *never_slower(TorchFused),
        ),
        budget=Budget(seconds=30),
        measure=loop.measure,
        environment="default",
    ),
    "loop-policy": Case(
        "in PyTorch's training loop, with default settings: policy networks",
        problems=(loop.policy(POLICY_LAYERS), loop.policy((17, 256, 256, 6))),
        peers=(OnepassTorch, *TORCH),
        budget=Budget(seconds=20),
        measure=loop.measure,
        environment="default",
    ),
    "loop-numpy": Case(
        "in NumPy's training loop, with default settings: steps and whole iterations of networks of 64 to 2,048 wide",
        problems=tuple(LOOPS.values()),
        peers=NUMPY_LOOP,
        targets=never_slower(OnepassOneThread),
        budget=Budget(seconds=30),
        measure=loop.measure,
        environment="default",
    ),
    "loop-numpy OPENBLAS_THREAD_TIMEOUT=16": Case(
        "the same with OpenBLAS' idle threads put to sleep early",
        problems=tuple(LOOPS.values()),
        peers=NUMPY_LOOP,
        targets=tuple(Target(LOOPS[width], (OnepassOneThread,), 1.5, "step") for width in (512, 1024, 2048)),
        budget=Budget(seconds=30),
        measure=loop.measure,
        environment="default",
        settings=("OPENBLAS_THREAD_TIMEOUT=16",),
    ),
    "thinc": Case(
        "600 thousand elements through thinc's interface: the adapter compared with thinc's own object",
        problems=(SIX_HUNDRED_THOUSAND,),
        peers=(OnepassThinc, ThincOptimizer),
        targets=(Target(SIX_HUNDRED_THOUSAND, (ThincOptimizer,), 4),),
    ),
    "sizes": Case(
        "100 to 10 million elements, one thread, all peers that support it: README's table and image",
        problems=tuple(of(10**exponent) for exponent in range(2, 8)),
        peers=tuple(kind for kind in PEERS if kind is not Optax),  # no single thread for the larger sizes
    ),
    "ranks": Case(
        "AdamW with its state divided among 1, 2 and 4 processes",
        problems=tuple(of(16 * 10**6, rule="AdamW", threads=0, ranks=n) for n in (1, 2, 4)),
        peers=(distributed.Sharded, distributed.ShardedClip, distributed.ShardedScattered),
        budget=Budget(iterations=15),
        measure=distributed.measure_ranks,
        environment="default",
    ),
    "disk": Case(
        "AdamW with its state in memory and on disk",
        problems=tuple(of(64 * 10**6, rule="AdamW", threads=0, on_disk=on_disk) for on_disk in (False, True)),
        peers=(distributed.Resident, distributed.Dropped, distributed.Saved),
        budget=Budget(iterations=8),
        measure=distributed.measure_disk,
        why_missing=distributed.why_no_disk,
        environment="default",
    ),
}


def find(name: str) -> Case:
    """Return the case of this name; a name with settings that is not in ``CASES`` is a variant without targets."""
    if name in CASES:
        return CASES[name]
    base, *settings = name.split(" ")
    return replace(CASES[base], targets=(), settings=tuple(settings))


def run_named(name: str, quick: bool) -> CaseRecord | None:
    """Run the case of this name: for another process, which takes only a name."""
    return run(find(name), quick)
