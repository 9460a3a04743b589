"""Builds on a Ray cluster of two nodes on this machine, of which one is killed in the middle, beside those without Ray.

scripts/bench/run cluster [--quick] [--tasks 500]

Twelve compressed models of digits, each distilled for four epochs: the weights must be those of `python -m builders`
without a cluster. Each node has a core. Then what a task costs that does nothing, on both nodes.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from clustered import kill, two_nodes

from zoo.cluster import Task, each

RECIPE = """
[[model]]
name = "{name}"
base = "{base}"
[model.recipe]
method = "{method}"
budget = {{ macs = {budget} }}
data = "digits[:256]"
teachers = ["{base}"]
schedule = {{ epochs = {epochs}, batch_size = 32, checkpoint_seconds = 1 }}
"""


def main() -> None:
    """Print what was built, how, and for how long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500, help="that do nothing")
    parser.add_argument("--quick", action="store_true", help="two builds of an epoch, fifty tasks")
    asked = parser.parse_args()
    methods, budgets, epochs, tasks = ("low_rank", "prune"), (0.3, 0.5, 0.7), 4, asked.tasks
    if asked.quick:
        methods, budgets, epochs, tasks = methods[:1], budgets[:1], 1, 50
    models = [*product(("digits_cnn", "digits_vit"), methods, budgets)]
    with tempfile.TemporaryDirectory() as place:
        recipes, alone, together = (Path(place) / name for name in ("recipes.toml", "alone", "together"))
        recipes.write_text("".join(recipe(*model, epochs) for model in models))
        begun = time.monotonic()
        subprocess.run(command(recipes, alone), check=True, capture_output=True)
        seconds = time.monotonic() - begun
        cluster, second = two_nodes()
        begun = time.monotonic()
        tries, lost = killed(cluster, second, command(recipes, together, "--on", cluster.address), len(models))
        wall = time.monotonic() - begun
        cluster.shutdown()
        expected, found = weights(alone), weights(together)
        same = sum(expected[name] == found.get(name) for name in expected)
        print(f"{len(models)} builds, {tries} tries, as the node that made {', '.join(lost)} was killed in the middle")
        print(f"{wall:.1f} s on two nodes, {seconds:.1f} s without Ray; sha256 equal {same} of {len(models)}")
        cluster, _ = two_nodes()
        print(f"{1000 * overhead(cluster.address, tasks):.1f} ms for each task that does nothing")
        cluster.shutdown()


def recipe(base: str, method: str, budget: float, epochs: int) -> str:
    """One model of the file of recipes."""
    name = f"{base}_{method}_{100 * budget:.0f}_here"
    return RECIPE.format(name=name, base=base, method=method, budget=budget, epochs=epochs)


def command(recipes: Path, out: Path, *more: str) -> list[str]:
    """The command that builds all of them."""
    return [sys.executable, "-m", "builders", str(recipes), "--out", str(out), *more]


def killed(cluster: Any, second: Any, words: list[str], models: int) -> tuple[int, list[str]]:
    """Run a command on a cluster, and kill the second node while it works, when a third of the models are done.

    Returns:
        How many times models were begun, and what the node was making.
    """
    node, on_node, tries, done, lost = second.node_id[:4], set(), 0, 0, []
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            name, _, said = line.strip().partition(": ")
            tries += "begins on" in said
            if "begins on" in said and said.endswith(node):
                on_node.add(name)
            if said.startswith("done"):
                done += 1
                on_node.discard(name)
            if on_node and not lost and 3 * done >= models:
                lost = sorted(on_node)
                time.sleep(2)  # amid its work
                kill(cluster, second)
    assert process.returncode == 0, "a model wasn't made"
    assert lost, "the second node had nothing to do"
    return tries, lost


def weights(folder: Path) -> dict[str, str]:
    """The sha256 of each model's weights."""
    files = folder.glob("*/model.safetensors")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def nothing(say: Any) -> None:
    """Do nothing."""


def overhead(address: str, tasks: int) -> float:
    """Seconds of a task that does nothing, once workers are there."""
    ended = []
    for one in each([Task(str(number), nothing) for number in range(tasks)], address):
        assert one.error is None, one.error
        ended.append(time.monotonic())
    late = ended[tasks // 5 :]
    return (late[-1] - late[0]) / (len(late) - 1)


if __name__ == "__main__":
    main()
