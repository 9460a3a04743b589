"""The catalog against the documents it quotes: no figure lost, none changed, none added.

tests/data/tables holds the tables and headings of the four documents as they were published. They are read here by
another hand than the one that wrote the catalog: a claim is (whose, under which conditions, figure, value).
"""

import csv
import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from zoo import catalog

TABLES = Path(__file__).parent / "data" / "tables"
ENTRIES = [catalog.info(name) for name in catalog.names(all=True)]


def of_project(project):
    return [entry for entry in ENTRIES if entry.project == project]


def quoted(project):
    """What the catalog says: claim → how often. A family states its baselines once for all its models."""
    models, dense = [], {}
    for entry in of_project(project):
        models += [(entry.name, row) for row in entry.reported]
        dense[repr(entry.baselines)] = [(row.of, row) for row in entry.baselines]
    found = []
    for whose, row in (*models, *(pair for rows in dense.values() for pair in rows)):
        assert row.counting == (project if "kmapp" in row.figures else None)
        conditions = {key: getattr(row, key) for key in ("input", "images", "batch", "device", "runtime")}
        held = tuple(sorted((key, value) for key, value in conditions.items() if value is not None))
        found += [(whose, held, figure, value) for figure, value in row.figures.items()]
    return Counter(found)


def claim(whose, figure, value, **conditions):
    return whose, tuple(sorted(conditions.items())), figure, value


def lines(document, section="## "):
    """The document's tables: (heading and remarks above a row, titles, cells)."""
    above, head = [], False
    for line in (TABLES / f"{document}.md").read_text().splitlines():
        if not line.strip().startswith("|"):
            head = False
            above = [line] if line.startswith(section) else [*above, *line.splitlines()]
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = cells
        elif set("".join(cells)) - set(":- "):
            yield above, head, cells


def share(text):
    """Per cent as a share, exactly as many digits as were printed."""
    number = text.strip().rstrip("%")
    return round(float(number) / 100, len(number.partition(".")[2]) + 2)


def assert_same(published, quoted):
    assert not published - quoted, "lost or changed"
    assert not quoted - published, "added or changed"


# torch-dag.

TEACHERS = {f"fbnetv3{size}": f"timm/fbnetv3_{size}.ra2_in1k" for size in "bdg"} | {"`yolov8n`": "yolov8n"}
UPSTREAM = {entry.origin.repo: entry for entry in of_project("torch-dag") if entry.origin}


def torch_dag():
    """What the document says."""
    for above, head, (name, *cells) in lines("torch_dag"):
        if "/" in cells[0]:
            yield from pairs(name, cells)
            continue
        if name == "baseline":
            (whose,) = {e.base.id for e in of_project("torch-dag") if e.family in above[0]}
        else:
            whose = TEACHERS.get(name) or UPSTREAM[re.search(r"co/(\S+)\)", name)[1]].name
        for title, cell in zip(head[1:], cells, strict=True):
            size = re.search(r"\((\d+)x\d+\)", title)
            figure = {"acc": "top1", "kmapp": "kmapp", "params": "params_m", "mAP50-95": "map"}[title.split(" (")[0]]
            value = share(cell) if figure == "map" else float(cell)
            detection = "yolo" in above[0]
            yield claim(whose, figure, value, **({} if detection else {"input": int(size[1]) if size else 224}))


def pairs(name, cells):
    """The last table's rows: dense / pruned, and by how much."""
    dense, _, pruned = name.partition(" / ")
    base = re.search(r"co/(timm/\S+)\)", dense)[1]
    link = re.search(r"co/(TCL\S+)\)", pruned)
    entry = UPSTREAM[link[1]] if link else catalog.info("mobilevitv2_200_pruned_60")
    size = int(found[1]) if (found := re.search(r"\((\d+)x", cells[0])) else 224
    for figure, cell in zip(("top1", "kmapp", "params_m"), cells, strict=True):
        before, after = (float(number) for number in re.match(r"([\d.]+)/([\d.]+)", cell).groups())
        change = re.search(r"[↓↑]\s*\**([\d.]+)(%?)", cell)
        by = abs(before - after) if not change[2] else 100 * (1 - after / before)
        assert by == pytest.approx(float(change[1]), abs=1.01 if change[2] else 1e-9) or change[1] in (entry.note or "")
        at = size if figure == "top1" else 224  # the size stands beside the accuracy alone
        yield claim(base, figure, before, input=at)
        yield claim(entry.name, figure, after, input=at)


def test_every_figure_of_torch_dag_is_quoted_and_no_other():
    published = Counter(torch_dag())

    assert sum(published.values()) == 4 * 7 + 3 * 9 + 3 * 4 + 3 * 4 + 3 * 4 + 3 * 3 + 3 * 4 + 6 * 6
    assert_same(published, quoted("torch-dag"))


def test_the_origins_of_torch_dag_are_at_their_known_commits():
    known = json.loads((TABLES / "torch_dag_commits.json").read_text())

    assert known == {repo: {"commit": e.origin.commit, "sha256": e.origin.sha256} for repo, e in UPSTREAM.items()}
    assert {"torch-dag"} == {entry.origin.format for entry in UPSTREAM.values()}


def test_the_longer_trainings_are_those_that_the_document_marks():
    marked = [name for _, _, (name, *_) in lines("torch_dag") if "_300]" in name]
    long = {UPSTREAM[re.search(r"co/(\S+)\)", name)[1]].name for name in marked}

    assert len(long) == 3
    assert all(e.recipe.schedule["epochs"] == (300 if e.name in long else 200) for e in of_project("torch-dag"))


# timm.


def test_every_figure_of_timm_is_quoted_and_no_other():
    rows = {row["model"]: row for row in csv.DictReader((TABLES / "timm.csv").read_text().splitlines())}
    published = Counter()
    for entry in of_project("timm"):
        for whose, model in ((entry.name, entry.origin.repo), (entry.baselines[0].of,) * 2):
            row = rows[model.removeprefix("timm/")]
            size = int(row["img_size"])
            published[claim(whose, "params_m", float(row["param_count"]), input=size)] += 1
            for figure in ("top1", "top5"):
                published[claim(whose, figure, share(row[figure]), input=size)] += 1

    assert sum(published.values()) == 3 * len(rows)
    assert_same(published, quoted("timm"))


# ptdeco.


def ptdeco_names(above, name, cells):
    """The entry and the dense model of a row, whatever the document calls it."""
    base = above[0].lstrip("# ")
    architecture = base.partition(".")[0]
    if name.startswith(("baseline", "original")):
        return f"timm/{base}"
    threshold = f"nt{round(100 * float(cells[0])):03}" if name[-2] == "_" else ""
    return f"{architecture}_" + (f"lockd_{threshold}" if threshold else name.replace("decomposed", "lockd"))


def ptdeco(document):
    """What a document says: entry or base, input, and printed cells by title."""
    for above, head, (name, *cells) in lines(document, "### "):
        row = dict(zip(head[1:], cells, strict=True))
        size = next((int(re.search(r"\d+", line)[0]) for line in above if line.startswith("Reso")), 224)
        if "latency" in row:
            device = above[-1].rpartition(" - ")[2]
            above = ["### " + above[-1].split()[1]]
            yield ptdeco_names(above, name, cells), {"device": device}, row
        else:
            yield ptdeco_names(above, name, cells), {"input": size}, row


COLUMNS = {"params": "params_m", "kmapps": "kmapp", "acc": "top1", "latency": "latency_ms"}
COLUMNS |= {"latency_std": "latency_std_ms", "speedup [%]": "speedup"}


def ptdeco_claims():
    for whose, conditions, row in ptdeco("ptdeco"):
        for title, figure in COLUMNS.items():
            if row.get(title):
                value = share(row[title]) if figure in ("top1", "speedup") else float(row[title])
                yield claim(whose, figure, value, **conditions)


def test_every_figure_of_the_ptdeco_readme_is_quoted_and_no_other():
    published = Counter(ptdeco_claims())

    assert sum(published.values()) == 3 * (15 + 9) + 3 * (2 * 2 + 1)
    assert_same(published, quoted("ptdeco"))


def test_every_setting_of_the_ptdeco_readme_is_in_a_recipe():
    checked = 0
    for whose, _, row in ptdeco("ptdeco"):
        if setting := row.get("settings"):
            key, _, value = setting.partition("=")
            recipe = catalog.info(whose).recipe
            assert (recipe.method, recipe.options[key]) == (row.get("method") or row["mehtod"], float(value))
            assert recipe.schedule["epochs"] == int(row["epochs_ft"])
        elif threshold := row.get("nsr_thr"):
            assert catalog.info(whose).recipe.options["nsr_threshold"] == float(threshold)
        checked += bool(row.get("settings") or row.get("nsr_thr"))
    assert checked == 15


def test_every_figure_of_the_first_ptdeco_results_is_quoted_or_noted():
    """Their kmapps are rounded; where a figure changed later, the note of the entries concerned has the earlier one."""
    later, noted, seen = quoted("ptdeco"), 0, 0
    for whose, conditions, row in ptdeco("ptdeco_v1"):
        for title, figure in COLUMNS.items():
            if not row.get(title):
                continue
            seen += 1
            factor, digits = 100 if figure in ("top1", "speedup") else 1, len(row[title].partition(".")[2])
            same = [key[3] for key in later if key[:3] == claim(whose, figure, 0, **conditions)[:3]]
            assert len(same) == 1
            if f"{factor * same[0]:.{digits}f}" != row[title]:
                noted += 1
                concerned = [e for e in of_project("ptdeco") if whose in (e.name, e.base.id)]
                assert [e.name for e in concerned if row[title] not in e.note] == [], (title, row[title])
        epochs = row.get("epochs_ft") or row.get("epohchs_ft")
        if epochs and int(epochs) != 200:
            assert f"{epochs} epochs" in catalog.info(whose).note
    assert seen == 3 * 20 + 3 * (2 * 2 + 1)
    assert noted == 9


# MRT.

CALLED = {"resnet18v1_b_0.89": "resnet18_v1b_0.89"}  # the same model, by its name in the other table


def mrt_entry(name):
    return CALLED.get(name, name).replace(".", "_") + "_int8"


def accuracies(name, cell):
    plain = {"coco": "map", "voc": "map50"}.get(name.rpartition("_")[2], "top1")
    found = re.findall(r"(top\d)=([\d.]+%)", cell) or [(plain, cell)]
    return {figure: share(text) for figure, text in found}


def mrt():
    for _, head, (name, *cells) in lines("mrt"):
        if head[0] != "model name":
            continue
        row = dict(zip(head[1:], cells, strict=True))
        images, batches = int(row["total sample"]), int(row["Iteration"]) + 1
        batch = math.ceil(images / batches)
        batch = batch if images % batches == 0 else 160  # the last batch isn't full
        assert math.ceil(images / batch) == batches
        several, float_ms, int_ms = (
            {"images": images, "batch": batch},
            *(row.get("time(ms)", "").split() or (None, None)),
        )
        measured = [
            (name, row["evalfunc"], float_ms, several),
            (mrt_entry(name), row["quantize"], int_ms, {**several, "runtime": "mxnet"}),
        ]
        if row.get("cvm"):
            accuracy, milliseconds = row["cvm"].removesuffix("ms").split()
            one = {"images": images, "batch": 1, "runtime": "cvm"}
            measured.append((mrt_entry(name), accuracy, milliseconds, one))
        for whose, accuracy, milliseconds, conditions in measured:
            figures = accuracies(name, accuracy) | ({"latency_ms": float(milliseconds)} if milliseconds else {})
            for figure, value in figures.items():
                yield claim(whose, figure, value, **conditions)


def mrt_overview():
    """The two short tables at the top: mostly repetitions of the long ones."""
    for _, head, (name, _, *rest) in lines("mrt"):
        if head[-1].startswith("(Top1)"):
            dense, quantized, difference = rest[0].split(" / ")
            assert share(dense) - share(quantized) == pytest.approx(share(difference))
            for whose, text in ((name, dense), (mrt_entry(name), quantized)):
                ((figure, value),) = accuracies(name, text).items()
                yield claim(whose, figure, value)


def test_every_figure_of_mrt_is_quoted_and_no_other():
    published, found = Counter(mrt()), quoted("mrt")
    bare = Counter((whose, figure, value) for (whose, _, figure, value) in published)
    only_there = Counter(key for key in mrt_overview() if (key[0], *key[2:]) not in bare)
    sizes = Counter(
        claim(mrt_entry(name), "params_size", float(size.rstrip("M")))
        for _, head, (name, size, *_) in lines("mrt")
        if head[1] == "Params Size"
    )

    assert (len(list(mrt_overview())), sum(only_there.values()), sum(sizes.values())) == (12, 2, 6)
    assert_same(published + only_there + sizes, found)


def test_every_quantized_model_is_there_once():
    rows = {mrt_entry(name) for _, head, (name, *_) in lines("mrt") if head[0] in ("model name", "Model Name")}

    assert rows == {entry.name for entry in of_project("mrt")}
    assert len(rows) == 70


def test_a_doubt_about_a_quantized_model_is_noted():
    """A runtime that differs from its simulation, two tables that differ, a quantized model above the float one."""
    doubts = 0
    for entry in of_project("mrt"):
        for figure in ("top1", "top5", "map50"):
            of = {
                runtime: [row.figures[figure] for row in rows if row.runtime == runtime and figure in row.figures]
                for rows in (entry.baselines, entry.reported)
                for runtime in {row.runtime for row in rows}
            }
            pairs = [pair for values in (of.get(None, []), of.get("mxnet", [])) for pair in pairwise(values)]
            doubtful = [pair for pair in pairs if abs(pair[0] - pair[1]) >= 0.005 and figure != "top5"]
            simulated, integer = of.get("mxnet", [])[-1:], of.get("cvm", [])
            doubtful += [pair for pair in zip(simulated, integer, strict=False) if abs(pair[0] - pair[1]) >= 0.01]
            above = zip(of.get(None, []), of.get("mxnet", []), strict=False)
            doubtful += [pair for pair in above if pair[1] - pair[0] >= 0.005]
            for pair in doubtful:
                doubts += 1
                assert [value for value in pair if f"{100 * value:.2f}" not in entry.note] == [], entry.name
    assert doubts > 20


@pytest.mark.parametrize(
    ("project", "counts"),
    [
        ("torch-dag", {"origin": 31, "recipe": 1}),
        ("ptdeco", {"recipe": 15}),
        ("mrt", {"recipe": 70}),
        ("timm", {"origin": 7}),
    ],
)
def test_the_models_of_every_source_are_counted(project, counts):
    assert counts == Counter(entry.status for entry in of_project(project))
