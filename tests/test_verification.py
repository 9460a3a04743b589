"""What a source claims of a model, held against what is measured: in the source's own counting, at its own input."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import zoo
from zoo import catalog
from zoo.errors import RepositoryError, StructureError
from zoo.measurement.tolerance import TURNED, tolerance
from zoo.printable import MAX_MESSAGE
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.digits import digit_pairs
from zoo.tasks.evaluation import evaluate
from zoo.tasks.outputs import Computing
from zoo.verbs import measuring, verification

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
COUNTS = {"params", "macs", "kmapp", "weights_bytes"}
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
        ("top1 = 0.976", "top1", "agrees"),  # within what another decoder may turn
        ("top1 = 0.96", "top1", "differs"),
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
    assert row.tolerance == pytest.approx(tolerance(100, turned=TURNED, drawn=0.97, rounding=0.001))
    assert rows("top1 = 0.80", images=100)[0].verdict == "differs"


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

    def evaluate(models, data, **_):
        seen.append((len(data.dataset), data.num_workers))
        return [{"top1": 0.5, "images": len(data.dataset), "sha256": ""}]

    monkeypatch.setattr(measuring, "evaluate_together", evaluate)
    unmatched = replace(CLASSIFICATION, matched=lambda data, *_: data)
    monkeypatch.setattr(measuring, "task_of", lambda model: unmatched)
    monkeypatch.setattr(measuring, "dataset", lambda *_, limit: digit_pairs("test", limit))
    measuring.report_of(zoo.load("digits_cnn"), "digit_pairs", images=images)
    measuring.report_of(zoo.load("digits_cnn"), "digit_pairs", images=images, workers=1)

    assert seen == [(images, workers), (images, 1)]


@pytest.fixture
def doubtful(tmp_path):
    """A function that changes what the results of a compressed model say of their data, or claim: folder."""

    def changed(data=None, measured=None):
        folder = tmp_path / "model"
        shutil.copytree(catalog.EMBEDDED / "digits_cnn_pruned_50", folder)
        said = json.loads((folder / "results.json").read_text())
        said["data"].update(data or {})
        said["measured"].update(measured or {})
        (folder / "results.json").write_text(json.dumps(said))
        return folder

    return changed


def test_a_divergence_from_other_weights_of_the_base_is_shown_and_not_judged(doubtful):
    found = zoo.verify(doubtful({"against_sha256": "0" * 64}, {"kl": 5.0}))
    (kl,) = (row for row in found.rows if row.figure == "kl")

    assert (kl.reported, kl.verdict) == (5.0, "another base")
    assert kl.measured < 0.1
    assert found.passed


def test_a_claim_that_takes_several_classes_for_one_is_told(doubtful, caplog):
    folder = doubtful({"labels": {str(digit): str(digit // 5) for digit in range(10)}})
    found = zoo.verify(folder, data="digits")

    assert "its figures take 10 classes of the data for 2 of the model's: --labels FILE" in caplog.text
    assert not found.passed
    caplog.clear()
    assert zoo.verify(folder, data="digits", labels=[str(digit) for digit in range(10)]).passed
    assert "take 10 classes" not in caplog.text


PATHS = ["/", "~", "~/a", "/proc", ".", "..", "model", "model/here", "./model", "../../etc", "a/..", "a/b/c", "a/*"]
PATHS += ["model/here[:5]", "/etc[:5]", "proc\n/self", "a/b\n", "\0", "\x1b[2J", "A:\\b", "é/b", f"a/{97 * 'b'}"]
URLS = ["file:///etc", "hf://datasets/a/b", "https://a/b", "zip://a::/b.zip", "//host/b", "s3://a/b", "a/b@main"]
WITHOUT_END = ["digit_pairs[:99999999]", f"digits[:{'9' * 500}]", "a/b[:1000001]", "digits" + "[:5]" * 200]
CLAIMED = [*PATHS, *URLS, *WITHOUT_END]


@pytest.mark.parametrize("spec", CLAIMED, ids=range(len(CLAIMED)))
def test_no_claim_chooses_what_is_read_of_this_disk_or_fetched_from_an_address(spec, doubtful, tmp_path, monkeypatch):
    folder = doubtful({"dataset": spec})
    (folder / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in (measuring, verification):
        monkeypatch.setattr(
            module, "dataset" if module is measuring else "load", lambda *_, **__: pytest.fail("opened")
        )

    with pytest.raises(RepositoryError, match="say which data here they are of with --data") as raised:
        zoo.verify(folder)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) <= MAX_MESSAGE


def test_what_a_claim_makes_us_fetch_is_said_before_anything_is_read(doubtful, monkeypatch, caplog):
    folder = doubtful({"dataset": "someones/pictures[:50]", "against": "resnet50d_pruned_56"})

    def loaded(name, **_):
        raise InterruptedError(name)

    monkeypatch.setattr(verification, "load", loaded)
    with pytest.raises(InterruptedError):
        zoo.verify(folder)
    first, second = caplog.messages  # without a level that anybody set
    assert first.endswith(": its figures are of someones/pictures[:50], which is fetched from the Hub")
    assert second.endswith(": it is compared with resnet50d_pruned_56 of the catalog, whose weights are fetched")
    caplog.clear()
    with pytest.raises(InterruptedError):
        zoo.verify(folder, data="digits")
    assert [*caplog.messages] == [second]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"size": 28}, "at 28 px"),
        ({"crop_pct": 0.5}, "crop 0.5"),
        ({"dtype": torch.bfloat16}, "in bfloat16"),
        ({"size": 40, "crop_pct": 0.875, "dtype": torch.float64}, "at 40 px, crop 0.875, in float64"),
    ],
)
def test_under_other_conditions_accuracy_is_shown_and_costs_are_judged(options, note):
    rows = {row.figure: row for row in zoo.verify("digits_cnn_pruned_25", **options).rows}

    assert {figure: row.verdict for figure, row in rows.items()} == {
        **dict.fromkeys(("params", "macs", "kmapp"), "agrees"),
        "weights_bytes": f"in {str(options['dtype']).removeprefix('torch.')}" if "dtype" in options else "agrees",
        "top1": note,
        "kl": note,
        "agreement": note,
    }
    assert rows["top1"].reported is not None
    assert rows["top1"].measured > 0.1


def test_a_size_and_a_crop_are_what_the_images_are_prepared_with():
    """The same as a model whose own configuration says so."""
    model = zoo.load("digits_cnn")
    asked = measuring.report_of(model, "digits[:200]", size=24, crop_pct=0.75)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 24, 24), "crop_pct": 0.75}
    own = measuring.report_of(model, "digits[:200]")

    assert asked.measured["top1"] == own.measured["top1"]
    assert (asked.data["input"], asked.data["crop_pct"]) == ([1, 24, 24], 0.75)
    assert asked.measured["macs"] != own.measured["macs"]  # those of the model's own size


def test_a_size_that_the_model_refuses_is_said_in_a_line():
    with pytest.raises(StructureError, match=r"the model refuses an input of \(1, 9, 9\)"):
        zoo.verify("digits_vit", size=9)


def test_what_wraps_a_model_is_taken_off_by_whatever_measures_it():
    model = zoo.load("digits_cnn")
    wrapped = torch.nn.DataParallel(model)
    image = digit_pairs("test", 1)[0]["image"]

    assert zoo.measure(wrapped) == zoo.measure(model)
    assert torch.equal(zoo.transform(wrapped)(image), zoo.transform(model)(image))
    one, other = (measuring.report_of(each, "digits[:50]").measured for each in (wrapped, model))
    assert one == other


def test_the_number_of_images_in_a_batch_changes_no_figure():
    found = [zoo.verify("digits_cnn_pruned_50", batch_size=size, workers=0).report.measured for size in (7, 64, 450)]

    assert found[0]["top1"] == found[1]["top1"] == found[2]["top1"]
    assert found[0]["kl"] == pytest.approx(found[2]["kl"], rel=1e-4)


def test_a_divergence_that_is_claimed_to_be_none_may_differ_by_rounding(doubtful):
    """The dense model itself, under a claim of 0."""
    folder = doubtful({}, {"kl": 0.0, "top1": OWN})
    dense = catalog.EMBEDDED / "digits_cnn"
    claims = json.loads((folder / "results.json").read_text())
    for name in ("config.json", "model.safetensors"):
        shutil.copy(dense / name, folder / name)
    counts = json.loads((dense / "results.json").read_text())["measured"]
    (folder / "results.json").write_text(json.dumps({**claims, "measured": {**counts, "kl": 0.0}}))

    assert {row.figure: row.verdict for row in zoo.verify(folder, batch_size=9).rows}["kl"] == "agrees"


def test_a_timm_id_is_measured_and_nothing_is_claimed_of_it(monkeypatch):
    model = zoo.create("timm/test_resnet")
    monkeypatch.setattr(verification, "load", lambda name, **_: model)
    found = zoo.verify("timm/test_resnet.r160_in1k", structure_only=True)

    assert {row.verdict for row in found.rows} == {"measured"}
    assert found.report.measured["params"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("classes", "measured"), [(100, True), (99, False)])
def test_top5_of_many_classes_is_the_share_of_images_whose_class_is_among_the_five_likeliest(classes, measured):
    """Against a sort of the logits, image by image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, classes, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    labels[:30] = logits[:30].argsort(1, descending=True)[torch.arange(30), torch.arange(30) % 10]
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(logits, labels), batch_size=7)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits.tolist(), labels, strict=True)]

    found = evaluate(torch.nn.Identity(), batches)

    assert found["top1"] == pytest.approx(sum(rank == 0 for rank in ranks) / 60)
    assert ("top5" in found) is measured
    if measured:
        assert found["top5"] == pytest.approx(sum(rank < 5 for rank in ranks) / 60)
        assert found["top1"] < found["top5"] < 1


def unjudged(verification):
    return {row.figure: row.note for row in verification.rows if row.note}


@pytest.mark.parametrize(
    ("claimed", "options", "note"),
    [
        ("", {}, None),
        ("", {"precision": "bf16"}, "bf16 autocast"),
        ("bf16", {"precision": "bf16"}, None),
        ("bf16", {}, "claimed of another precision"),
        ("", {"channels_last": True}, None),
        ("", {"size": 48, "crop_pct": 0.9}, "at 48 px, crop 0.9"),
    ],
)
def test_a_claim_is_judged_in_its_own_precision_alone(doubtful, claimed, options, note):
    found = zoo.verify(doubtful({"precision": claimed}), **options)

    assert unjudged(found) == ({} if note is None else dict.fromkeys(("top1", "kl", "agreement"), note))
    assert found.report.data.get("precision", "") == options.get("precision", "")
    assert bool(found.unjudged) == (note is not None)


def test_single_precision_is_never_tf32():
    allowed = []

    class Asking(torch.nn.Linear):
        def forward(self, x):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return super().forward(x)

    before = torch.backends.cudnn.allow_tf32
    Computing().forward(Asking(3, 2))(torch.ones(1, 3))

    assert allowed == [False]
    assert torch.backends.cudnn.allow_tf32 == before
