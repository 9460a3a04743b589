"""The head of a card, which the Hub reads: licence, base, tags, and what was measured."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from zoo.catalog.data_names import HUB_ID
from zoo.catalog.entry import Base, Entry
from zoo.catalog.methods import METHODS
from zoo.catalog.report import Report
from zoo.hub.remote import LIBRARY
from zoo.pages import words
from zoo.structure.description import Description
from zoo.structure.sources import is_base_id
from zoo.tasks import TASKS
from zoo.tasks.task import Leading


def eval_results(report: Report, task: str) -> dict[str, str]:
    """What was measured on a data set of the Hub, as its model pages and leaderboards read it.

    Returns:
        Path in the repository → YAML; empty where the data set isn't on the Hub.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    data, leading = report.data.get("dataset", ""), leading_of(report, task)
    if leading is None or not HUB_ID.fullmatch(data):
        return {}
    images, split = (report.data.get(key, unknown) for key, unknown in (("images", "?"), ("split", "test")))
    entry = EvalResultEntry(
        dataset_id=data,
        task_id="default",
        value=report.measured[leading.figure],
        notes=f"{leading.label} {leading.metric} of {images} images ({split})",
    )
    text = yaml_dump(eval_result_entries_to_yaml([entry]))
    return {f".eval_results/{data.rpartition('/')[2]}.yaml": text}


def leading_of(report: Report, task: str) -> Leading | None:
    """The figure that cards of a task lead with, where it was measured."""
    leading = TASKS[task].leading if task in TASKS else None
    return leading if leading and leading.figure in report.measured else None


def metadata(entry: Entry, description: Description, recipe: Mapping[str, Any], report: Report) -> ModelCardData:
    """What the Hub reads of a card; arguments as for `render`, and the recipe by which this very model was made."""
    method = METHODS.get(recipe.get("method") or entry.recipe.method or "")
    edited = recipe.get("method") or entry.recipe.method or description.plan.edits or description.graph
    tags = method.tags if method else () if edited else ("dense",)
    more: dict[str, Any] = {}
    dense = recipe.get("base") or dense_id(entry.base)
    if dense and HUB_ID.fullmatch(dense):
        more = {"base_model": dense, "base_model_relation": method.relation if method else "finetune"}
    if (leading := leading_of(report, description.task)) and report.data.get("dataset"):
        dataset = words.dataset_name(report.data["dataset"])
        figure = EvalResult(
            task_type=description.task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=report.data.get("split"),
            metric_type=leading.metric,
            metric_name=leading.title,
            metric_value=report.measured[leading.figure],
        )
        more |= {"model_name": description.name, "eval_results": [figure]}
    license = entry.license.lower() if entry.license else None
    if license and license.endswith("-license"):  # not one of the Hub's own ids
        more |= {"license_name": license}
        license = "other"
    return ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag=description.task,
        datasets=[entry.dataset] if entry.dataset and HUB_ID.fullmatch(entry.dataset) else None,
        tags=[LIBRARY, *tags, *(["distillation"] if recipe.get("teachers") else [])],
        **more,
    )


def dense_id(base: Base | None) -> str | None:
    """The id of the dense weights; a base id without a tag names an architecture alone."""
    return None if base is None or (is_base_id(base.id) and "." not in base.id) else base.id
