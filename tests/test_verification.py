"""What a source claims of a model, held against what is measured: in the source's own counting, at its own input."""

import json
import shutil

import pytest

import zoo
from zoo import catalog, verification
from zoo.tasks.digits import digit_pairs

ENTRY = """
[family]
architecture = "resnet18"
task = "image-classification"
status = "embedded"
license = "mit"
dataset = "digits"
input = [1, 32, 32]
[[model]]
name = "digits_cnn"
reported = [{{ {claim} }}]
"""
COUNTS = {"params", "macs", "kmapp"}
OWN = 447 / 450  # the accuracy that its own results say


@pytest.fixture
def rows(tmp_path_factory, monkeypatch):
    """A function that verifies digits_cnn under one claim: claim → the rows that compare it."""

    def compared(claim, **options):
        folder = tmp_path_factory.mktemp("catalog")  # each is read once
        (folder / "mine.toml").write_text(ENTRY.format(claim=claim))
        monkeypatch.setenv("ZOO_CATALOG", str(folder))
        found = zoo.verify("digits_cnn", structure_only="top1" not in claim, **options).rows
        return [row for row in found if row.figure not in COUNTS and row.reported not in (None, OWN)]

    return compared


@pytest.mark.parametrize(
    ("claim", "figure", "verdict"),
    [
        ('kmapp = 4.698, counting = "torch-dag"', "kmapp (torch-dag)", "agrees"),
        ('kmapp = 4.72, counting = "torch-dag"', "kmapp (torch-dag)", "agrees"),  # within 0.5 %
        ('kmapp = 4.74, counting = "torch-dag"', "kmapp (torch-dag)", "differs"),
        ('kmapp = 4.545, counting = "ptdeco"', "kmapp (ptdeco)", "agrees"),
        ('kmapp = 4.698, counting = "ptdeco"', "kmapp (ptdeco)", "differs"),
        ('kmapp = 5, counting = "ptdeco"', "kmapp (ptdeco)", "agrees"),  # printed without digits
        ("params_m = 0.1635", "params_m", "agrees"),
        ("params_m = 0.17", "params_m", "agrees"),
        ("params_m = 0.15", "params_m", "differs"),
        ("top1 = 0.9933", "top1", "agrees"),
        ("top1 = 0.9933, input = 32", "top1", "agrees"),
        ("top1 = 0.98", "top1", "differs"),
    ],
)
def test_a_claim_is_compared_in_its_own_counting_and_within_what_was_printed(rows, claim, figure, verdict):
    assert [(figure, verdict)] == [(row.figure, row.verdict) for row in rows(claim)]


def test_a_count_at_another_input_is_made_at_that_input(rows):
    at_32 = rows('kmapp = 4.69779, counting = "torch-dag"')
    at_64 = rows('kmapp = 4.69559, counting = "torch-dag", input = 64')

    assert at_32[0].measured != at_64[0].measured
    assert at_64[0].measured == pytest.approx(4.69559, abs=1e-5)


@pytest.mark.parametrize(
    "claim", ["top1 = 0.98, input = 64", 'top1 = 0.98, runtime = "cvm"', 'params_m = 9.0, device = "phone"']
)
def test_a_claim_that_was_not_measured_like_this_is_not_judged(rows, claim):
    assert rows(claim) == []


def test_an_accuracy_on_a_draw_of_the_images_may_differ_as_far_as_the_draw(rows):
    (row,) = rows("top1 = 0.97", images=100)

    assert row.verdict == "agrees"
    assert row.tolerance == pytest.approx(2 * (0.97 * 0.03 / 100) ** 0.5)
    assert rows("top1 = 0.85", images=100)[0].verdict == "differs"


@pytest.mark.parametrize(("base", "figures"), [("digits_cnn", {"kl": "agrees"}), ("one's own", {})])
def test_a_divergence_is_judged_where_its_base_is_at_hand(base, figures, tmp_path):
    shutil.copytree(catalog.EMBEDDED / "digits_cnn_pruned_50", tmp_path / "model")
    results = tmp_path / "model" / "results.json"
    said = json.loads(results.read_text())
    results.write_text(json.dumps({**said, "data": {**said["data"], "against": base}}))
    found = zoo.verify(tmp_path / "model")

    assert {row.figure: row.verdict for row in found.rows if row.figure == "kl"} == figures
    assert found.passed


@pytest.mark.parametrize(("images", "workers"), [(9_999, 0), (10_000, 3)])
def test_only_many_images_are_loaded_by_workers(images, workers, monkeypatch):
    """As many as there are cores that this process may use, shared with the others of its machine."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(6), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    seen = []

    def evaluate(model, data, **_):
        seen.append((len(data.dataset), data.num_workers))
        return {"top1": 0.5, "images": len(data.dataset)}

    monkeypatch.setattr(verification, "evaluate", evaluate)
    monkeypatch.setattr(verification, "check_classes", lambda *_: None)
    monkeypatch.setattr(verification, "dataset", lambda *_, limit: digit_pairs("test", limit))
    verification.report_of(zoo.load("digits_cnn"), "digit_pairs", images=images)
    verification.report_of(zoo.load("digits_cnn"), "digit_pairs", images=images, workers=1)

    assert seen == [(images, workers), (images, 1)]
