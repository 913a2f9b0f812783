"""Fine-tuning of a GPT-2 by Hugging Face's Trainer in float32 and with fewer bits.

    python examples/low_precision/fine_tuning.py     # about ten minutes on one core; --quick: a minute, as a trial

A small GPT-2 with random weights is trained on the docstrings of SciPy, character by character, with PyTorch's AdamW.
Each storage then fine-tunes the same weights on the docstrings of scikit-learn, in a separate process and on one
thread.

The program writes a figure of the losses, a table, and the results as JSON. It needs PyTorch, transformers, accelerate,
scikit-learn and matplotlib.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(
    str(Path(__file__).resolve().parents[1])
)  # where this package, comparison, publish.py and train_digits.py are

import numpy as np
from comparison import data
from low_precision.figure import COLOURS, frame
from low_precision.memory import in_new_process, status
from low_precision.report import loss, percent, relative
from publish import markdown, publish, rounded, versions, write_figure
from train_digits import need

import onepass

PACKAGES = ("numpy", "torch", "transformers", "accelerate", "scipy", "scikit-learn")
CONTEXT = 128  # characters
RATE = 1e-3
BATCH = 8
HELD_OUT = 200  # windows of characters, for the loss in the table
LOGGED = 10  # steps between two losses of the curves


class Storage(NamedTuple):
    """Library and storage of a fine-tuning."""

    library: str
    options: dict[str, Any]
    narrow_weights: bool = False  # weights, gradients and matrix products in bfloat16


class Size(NamedTuple):
    """Network, and length of the training runs."""

    width: int
    layers: int
    first_steps: int
    steps: int


PLAIN = "float32, torch.optim"
STORAGES = {
    PLAIN: Storage("torch", {}),
    "float8 state, onepass": Storage("onepass", {"state_dtype": "float8"}),
    "bfloat16 weights, float8 state, onepass": Storage("onepass", {"state_dtype": "float8", "master_bits": 24}, True),
}


def windows(package: str) -> Any:
    """Return the docstrings of a package as rows of CONTEXT characters."""
    text = "\n".join(data.docstrings(package)).encode("ascii", "replace")
    characters = np.frombuffer(text, np.uint8).astype(np.int64)
    return need("torch", "torch").from_numpy(characters[: characters.size // CONTEXT * CONTEXT].reshape(-1, CONTEXT))


def train(model: Any, storage: Storage, package: str, seed: int, steps: int) -> dict[str, Any]:
    """Train on the docstrings of a package; return the losses, the seconds per step and the bytes of state."""
    torch, transformers = need("torch", "torch"), need("transformers", "transformers")
    library = torch.optim if storage.library == "torch" else onepass.integrations.torch
    optimizer = library.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, **storage.options)
    rows = windows(package)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    held_out, training = (
        [{"input_ids": row, "labels": row} for row in part] for part in rows.split([HELD_OUT, len(rows) - HELD_OUT])
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, use_cpu=True, bf16=storage.narrow_weights, max_steps=steps, per_device_train_batch_size=BATCH,
            seed=seed, logging_steps=LOGGED, save_strategy="no", report_to=[], disable_tqdm=True,
            prediction_loss_only=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=training, eval_dataset=held_out, optimizers=(optimizer, None)
        )
        trainer.remove_callback(transformers.PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"] / steps
        losses = [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]
        final = trainer.evaluate()["eval_loss"]
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    state = sum(tensor.nbytes for tensor in tensors)
    return {"losses": losses, "held_out": final, "seconds": seconds, "state": state}


def new_model(width: int, layers: int) -> Any:
    """Return a GPT-2 with random weights."""
    transformers = need("transformers", "transformers")
    sizes = {"vocab_size": 128, "n_positions": CONTEXT, "n_embd": width, "n_layer": layers, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def first_training(folder: str, seed: int, size: Size) -> int:
    """Train random weights on SciPy's docstrings and save the model; return the number of parameters."""
    need("torch", "torch").set_num_threads(1)
    need("transformers", "transformers").set_seed(seed)
    model = new_model(size.width, size.layers)
    train(model, STORAGES[PLAIN], "scipy", seed, size.first_steps)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def fine_tune(folder: str, storage: Storage, seed: int, steps: int) -> dict[str, Any]:
    """Train a saved model on scikit-learn's docstrings; return the results of `train` and the peak memory in bytes."""
    torch, transformers = need("torch", "torch"), need("transformers", "transformers")
    torch.set_num_threads(1)

    def stored(model: Any) -> Any:
        return onepass.integrations.torch.cast_model(model) if storage.narrow_weights else model

    train(stored(new_model(8, 1)), storage, "sklearn", seed, 2)  # warm-up: excludes the libraries' own memory
    before = status("VmRSS")
    model = stored(transformers.GPT2LMHeadModel.from_pretrained(folder))
    return {**train(model, storage, "sklearn", seed, steps), "peak": status("VmHWM") - before or None}


def experiment(args: Namespace) -> dict[str, Any]:
    """Train the first model for each seed, then fine-tune it with each storage."""
    need("accelerate", "accelerate")
    size = Size(32, 1, 10, 20) if args.quick else Size(256, 4, 150, 200)
    chosen = range(args.seeds or (2 if args.quick else 3))
    runs: dict[str, list[Any]] = {name: [] for name in STORAGES}
    for seed in chosen:
        with tempfile.TemporaryDirectory() as folder:
            parameters = in_new_process(first_training, folder, seed, size)
            for name, storage in STORAGES.items():
                runs[name].append(in_new_process(fine_tune, folder, storage, seed, size.steps))
                print(f"seed {seed}, {name}: held-out loss {runs[name][-1]['held_out']:.4f}")
    found = {name: {key: [one[key] for one in own] for key in own[0]} for name, own in runs.items()}
    results = {"versions": versions(*PACKAGES), **size._asdict(), "parameters": parameters}
    return {**results, "seeds": [*chosen], "storages": rounded(found)}


def table(results: dict[str, Any]) -> str:
    """Losses, memory and time of each storage."""
    rows = [
        ["weights and state", "held-out loss", "difference", "state in memory", "peak of the process", "time of a step"]
    ]
    plain = results["storages"][PLAIN]["held_out"]
    for name, own in results["storages"].items():
        difference = "" if name == PLAIN else percent(*relative(own["held_out"], plain))
        sizes = [mebibytes(own["state"]), mebibytes(own["peak"])]
        rows.append([name, loss(own["held_out"]), difference, *sizes, f"{1e3 * np.median(own['seconds']):.0f} ms"])
    notes = (
        f"GPT-2 with {results['layers']} blocks of {results['width']} channels, {results['parameters']:,} parameters; "
        f"{results['steps']} steps with batches of {BATCH} windows of {CONTEXT} characters; losses: mean of "
        f"{len(results['seeds'])} seeds with 95 % interval; memory and time: medians, one thread."
    )
    return f"{markdown(rows)}\n\n{notes}"


def mebibytes(sizes: Sequence[int | None]) -> str:
    """Format the median of sizes in bytes, which are None where there is no measurement."""
    known = [size for size in sizes if size is not None]
    return f"{np.median(known) / 2**20:.1f} MiB" if known else "not measured"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the mean training loss by step."""
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=(9.0, 4.6), facecolor="white")
    axes = figure.add_axes((0.08, 0.17, 0.88, 0.62))
    for (name, own), colour in zip(results["storages"].items(), ("float32", "float8", "weights"), strict=True):
        steps = LOGGED * np.arange(1, len(own["losses"][0]) + 1)
        dashes = "-" if name == PLAIN else "--"
        axes.plot(steps, np.mean(own["losses"], axis=0), dashes, label=name, color=COLOURS[colour], linewidth=2)
    axes.set_xlabel("step")
    axes.legend(frameon=False)
    frame(
        axes, "Fine-tuning GPT-2 with Hugging Face's Trainer", f"Training loss, mean of {len(results['seeds'])} seeds"
    )
    write_figure(figure, results, path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, draw the figure."""
    return publish(
        argv,
        description="Fine-tuning of a GPT-2 by Hugging Face's Trainer in float32 and with fewer bits",
        out=Path("out/fine_tuning.png"),
        experiment=experiment,
        sections={"fine-tuning": table},
        draw=draw,
        quick="a trial: a tiny network, a few steps, and by default two seeds",
        seeds="number of seeds (default: 3)",
    )


if __name__ == "__main__":
    sys.exit(main())
