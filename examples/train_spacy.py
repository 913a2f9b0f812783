"""Train spaCy pipelines with thinc's Adam and with onepass's, and compare losses and times.

A text classifier and an entity recogniser on a blank English pipeline, from a few dozen sentences that are made here:
the only change between the two runs is the optimizer's name in the configuration.

    python examples/train_spacy.py [--steps 40]
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any, NamedTuple

import numpy as np
import spacy
from spacy.training import Example
from thinc.api import fix_random_seed

OPTIMIZERS = {"thinc": "Adam.v1", "onepass": "onepass.Adam.v1"}  # found by name, without an import

PEOPLE = ["Ada Lovelace", "Grace Hopper", "Alan Turing", "Emmy Noether"]
PLACES = ["London", "New York", "Manchester", "Göttingen"]
SCORES = {"textcat": "cats_score", "ner": "ents_f"}  # the components, and the metric of each

KIND = ["{person} loved the concert in {place}.", "In {place} everybody praised {person}."]
UNKIND = ["{person} found the food in {place} awful.", "The hotel in {place} disappointed {person} badly."]


def sentences() -> list[tuple[str, dict[str, Any]]]:
    """Make 64 sentences, each with its category and with the names of people and places in it."""
    made = []
    for (template, kind), person, place in itertools.product(
        [(t, True) for t in KIND] + [(t, False) for t in UNKIND], PEOPLE, PLACES
    ):
        text = template.format(person=person, place=place)
        named = ((person, "PERSON"), (place, "GPE"))
        spans = [(text.index(name), text.index(name) + len(name), label) for name, label in named]
        made.append((text, {"cats": {"KIND": float(kind), "UNKIND": float(not kind)}, "entities": spans}))
    return made


class Run(NamedTuple):
    """Record of one training run."""

    losses: list[float]  # of each step
    seconds: float
    stepping: float  # seconds of them in the optimizer
    score: float  # on the sentences, with averaged weights


def train(component: str, optimizer: str, steps: int) -> Run:
    """Train one component from the same start, with the optimizer of this name."""
    fix_random_seed(0)
    config = {"training": {"optimizer": {"@optimizers": optimizer, "L2": 0.01, "L2_is_weight_decay": True}}}
    nlp = spacy.blank("en", config=config)
    nlp.add_pipe(component)
    examples = [Example.from_dict(nlp.make_doc(text), facts) for text, facts in sentences()]
    rng = np.random.default_rng(0)
    with nlp.select_pipes(enable=[component]):
        sgd = nlp.initialize(lambda: examples)
        stepping = 0.0

        def timed(*arguments: Any, **named: Any) -> Any:
            nonlocal stepping
            began = time.perf_counter()
            result = sgd(*arguments, **named)
            stepping += time.perf_counter() - began
            return result

        seen = []
        began = time.perf_counter()
        for _ in range(steps):
            batch = [examples[i] for i in rng.choice(len(examples), 16, replace=False)]
            losses: dict[str, float] = {}
            nlp.update(batch, sgd=timed, losses=losses, drop=0.1)
            sgd.step_schedules()
            seen.append(float(losses[component]))
        took = time.perf_counter() - began
        with nlp.use_params(sgd.averages):
            scores = nlp.evaluate(examples)
    return Run(seen, took, stepping, scores[SCORES[component]])


def main(arguments: list[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="batches of 16 sentences (default: %(default)s)")
    steps = parser.parse_args(arguments).steps
    shown = range(0, steps, max(1, steps // 6))
    for component in SCORES:
        print(f"{component:16}{'loss at step' + ''.join(f'{1 + t:10}' for t in shown):>{12 + 10 * len(shown)}}")
        for name, registered in OPTIMIZERS.items():
            run = train(component, registered, steps)
            print(f"  {name:26}" + "".join(f"{run.losses[t]:10.5f}" for t in shown))
            print(f"    score {run.score:.3f}, {run.seconds:.2f} s, of which {run.stepping:.3f} s in the optimizer")


if __name__ == "__main__":
    main()
