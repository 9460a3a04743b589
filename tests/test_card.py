"""The card: what it says equals what was measured, and it claims nothing else."""

import re

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from msgspec.structs import replace

from zoo.catalog.entry import Base, Budget, Entry, Origin, Recipe, Reported
from zoo.catalog.methods import METHODS
from zoo.catalog.report import Report
from zoo.pages.card import LONG, render
from zoo.structure.description import Description
from zoo.structure.plan import Drop, Factor, Heads, Mask, Narrow, Plan, Rank, Swap, Width

DENSE = "timm/resnet18.a1_in1k"
BASE = Base("timm/resnet18", {"num_classes": 10})
RECIPE = Recipe("prune", Budget(0.25), {"round_to": 4}, "digits", ("small",), {}, {"epochs": 40, "lr": 0.002}, {}, 7)
ENTRY = Entry(
    "small_25",
    "zoo",
    "small",
    "resnet18",
    "image-classification",
    "embedded",
    base=Base(DENSE),
    license="Apache-2.0",
    dataset="ILSVRC/imagenet-1k",
    source="https://example.org/results",
    recipe=RECIPE,
)
PLAN = Plan((Narrow({"conv1": Width(12, 3), "fc": Width(inputs=8)}, {"attn": Heads(2, 16)}),))
DATA = {"dataset": "digits", "split": "test", "images": 450, "input": [1, 32, 32], "crop_pct": 0.95, "mean": [0.5]}
MEASURED = {"params": 78_412, "macs": 2_311_042, "kmapp": 4.5138, "top1": 0.9733333333}
MEASURED |= {"agreement": 0.9875, "kl": 0.04321}
REPORT = Report("small_25", MEASURED, DATA, {"zoo": "0.1.0", "torch": "2.9.0"}, "cpu (x86_64)")
BESIDE = Report("small", {"params": 313_648, "macs": 9_244_168, "kmapp": 18.0552, "top1": 0.98}, DATA)
CFG = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "std": [0.25]}


def card(entry=ENTRY, plan=PLAN, report=REPORT, base=None, recipe=None, structure="exact"):
    return render(entry, Description(entry.name, BASE, plan, recipe or {}, structure), report, CFG, base)


def made(**recipe):
    return replace(ENTRY, recipe=Recipe(**recipe))


def data(text):
    return ModelCard(text).data.to_dict()


def tables(text):
    """The cells of every table, as a Markdown parser sees them: a list of rows each."""
    found = []
    for token in MarkdownIt().enable("table").parse(ModelCard(text).text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level == 4 and found:
            found[-1][-1].append(token.content)
    return found


def figures(text):
    return {row[0]: row[1:] for row in tables(text)[0][1:]}


def test_the_front_matter_is_what_huggingface_hub_writes_for_the_same_facts():
    accuracy = EvalResult(
        task_type="image-classification",
        dataset_type="digits",
        dataset_name="digits",
        dataset_split="test",
        metric_type="accuracy",
        metric_name="Top-1",
        metric_value=0.9733333333,
    )
    expected = ModelCardData(
        license="apache-2.0",
        library_name="compressed-zoo",
        pipeline_tag="image-classification",
        datasets=["ILSVRC/imagenet-1k"],
        base_model=DENSE,
        base_model_relation="finetune",
        tags=["compressed-zoo", "pruned", "channel-pruning", "distillation"],
        model_name="small_25",
        eval_results=[accuracy],
    )

    assert data(card()) == expected.to_dict()


def test_the_front_matter_is_read_back_from_the_file(tmp_path):
    (tmp_path / "README.md").write_text(card())
    found = metadata_load(tmp_path / "README.md")
    name, results = model_index_to_eval_results(found["model-index"])

    assert name == "small_25"
    assert [(r.metric_type, r.metric_value) for r in results] == [("accuracy", MEASURED["top1"])]


@pytest.mark.parametrize(
    ("method", "tags", "relation"),
    [
        ("prune", ["pruned", "channel-pruning"], "finetune"),
        ("low_rank", ["low-rank"], "finetune"),
        ("falor", ["low-rank"], "finetune"),
        ("lockd", ["low-rank"], "finetune"),
        ("dwain", ["low-rank"], "finetune"),
        ("magnitude", ["pruned", "unstructured"], "finetune"),
        ("integer", ["quantized", "int8"], "quantized"),
        (None, ["dense"], "finetune"),
    ],
)
def test_tags_and_the_relation_to_the_base_follow_from_the_method(method, tags, relation):
    found = data(card(made(method=method), plan=Plan()))

    assert found["tags"] == ["compressed-zoo", *tags]
    assert found["base_model_relation"] == relation


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_words_of_its_own(method):
    assert "compressed" not in card(made(method=method)).split("## Use")[0].split("# small_25")[1]


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"license": None}, "license"),
        ({"dataset": "digits"}, "datasets"),
        ({"dataset": "/home/me/images"}, "datasets"),
        ({"base": Base("timm/resnet18")}, "base_model"),
        ({"base": Base("small")}, "base_model"),
        ({"base": None}, "base_model"),
    ],
)
def test_what_the_hub_does_not_know_is_left_out(change, missing):
    assert missing not in data(card(replace(ENTRY, **change)))


@pytest.mark.parametrize("report", [Report("small_25", {"params": 1}), replace(REPORT, data={})])
def test_without_a_named_data_set_no_accuracy_is_claimed_to_the_hub(report):
    assert "model-index" not in data(card(report=report))


def test_a_model_without_measured_accuracy_claims_none():
    text = card(report=Report("small_25", {"params": 78_412, "macs": 2_311_042}))

    assert "top-1" not in text.lower()
    assert "measured on" not in text
    assert list(figures(text)) == ["parameters", "multiply-accumulates"]


def test_every_figure_of_the_report_stands_in_the_card():
    assert figures(card(base=BESIDE)) == {
        "parameters": ["78.4 k (78,412)", "314 k (313,648)", "25 %"],
        "multiply-accumulates": ["2.31 M (2,311,042)", "9.24 M (9,244,168)", "25 %"],
        "kmapp = 2·macs/(1000·H·W)": ["4.5138", "18.0552", "25 %"],
        "top-1 on 450 images (digits, test)": ["97.33 %", "98.00 %", "-0.67 points"],
        "agreement with the dense base": ["98.75 %", "", ""],
        "KL divergence from the dense base": ["0.04321 nats", "", ""],
    }
    assert figures(card()) == {label: row[:1] for label, row in figures(card(base=BESIDE)).items()}


@pytest.mark.parametrize("change", [{"images": 50}, {"split": "train"}, {"dataset": "other"}])
def test_the_base_accuracy_on_other_images_is_not_set_beside(change):
    row = figures(card(base=replace(BESIDE, data={**DATA, **change})))["top-1 on 450 images (digits, test)"]

    assert row == ["97.33 %", "", ""]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (999, "999"),
        (1000, "1 k (1,000)"),
        (999_499, "999 k (999,499)"),
        (999_999, "1 M (999,999)"),
        (4_350_000_000, "4.35 G (4,350,000,000)"),
    ],
)
def test_counts_are_readable_and_exact(count, text):
    assert figures(card(report=Report("small_25", {"params": count})))["parameters"] == [text]


def test_a_figure_without_a_label_still_stands_in_the_card():
    assert figures(card(report=Report("small_25", {"sparsity": 0.5}))) == {"sparsity": ["0.5"]}


def test_preprocessing_and_conditions_are_the_report_s_before_the_model_s():
    text = card()

    assert "Input and preprocessing: 1x32x32, bicubic, crop 0.95, mean [0.5], std [0.25]." in text
    assert "Measured with zoo 0.1.0, torch 2.9.0 on cpu (x86_64)." in text


def test_reported_figures_stand_apart_with_their_source():
    reported = (
        Reported({"top1": 0.7975, "params_m": 16.3, "kmapp": 96.6}, input=224, counting="torch-dag"),
        Reported({"map": 0.449, "latency_ms": 12.5}, batch=8, device="phone", source="https://example.org/map"),
    )
    baselines = (Reported({"top1": 0.809}, of=DENSE, images=50_000, runtime="mxnet"),)
    text = card(replace(ENTRY, reported=reported, baselines=baselines), report=Report("small_25", {"params": 5}))
    counts = "top-1 79.75 %, millions of parameters 16.3, kmapp 96.6"

    assert tables(text)[1] == [
        ["reported of", "figures", "with"],
        ["this model", counts, "224 px, torch-dag's counting"],
        ["this model", "mAP 50-95 44.9 %, latency in ms 12.5", "8 in a batch, phone, from https://example.org/map"],
        [DENSE, "top-1 80.9 %", "50,000 images, mxnet"],
    ]
    assert text.count("https://example.org/results") == 1  # which would make the table too wide for a card
    assert "model-index" not in data(text)
    assert "79.75" not in str(tables(text)[0])


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            ENTRY,
            f"channels pruned to a budget of 25 % of the multiply-accumulates of {DENSE} and distilled from small; ",
        ),
        (replace(ENTRY, base=Base("small")), "of the multiply-accumulates of small and distilled from it; "),
        (replace(ENTRY, base=BASE), "of the multiply-accumulates of its base and distilled"),
        (
            made(method="prune", budget=Budget(0.555, 0.637)),
            "55.5 % of the multiply-accumulates and 63.7 % of the para",
        ),
        (made(data="digits"), "; trained and measured on digits."),
        (made(data="other"), "; trained on other, measured on digits."),
        (made(method="prune"), "; measured on digits."),
        (made(), "resnet18 (small), compressed; measured on digits."),
    ],
)
def test_one_sentence_says_what_the_model_is(entry, sentence):
    assert sentence in card(entry)


def test_a_dense_model_says_so():
    text = card(made(data="digits"), plan=Plan())

    assert "resnet18 (small), dense; trained and measured on digits." in text
    assert "`timm/resnet18` with num_classes 10, unchanged." in text


@pytest.mark.parametrize(
    ("edit", "summary", "row"),
    [
        (Narrow({"a": Width(8, 4, 2)}), "narrowed: 1 layer", ["`a`", "narrow", "8 outputs, 4 inputs, 2 groups"]),
        (Narrow({}, {"a": Heads(2, 16)}), "narrowed: 1 attention module", ["`a`", "narrow", "2 heads of 16"]),
        (Factor({"a": Rank(8)}), "factored: 1 layer", ["`a`", "factor", "rank 8"]),
        (
            Factor({"a": Rank(8, "last")}),
            "factored: 1 layer",
            ["`a`", "factor", "rank 8, kernel in the last factor"],
        ),
        (Mask(("a", "b")), "masked: 2 layers", ["`a`", "mask", "zeros stay zero"]),
        (Drop({"a": "identity"}), "dropped: 1 module", ["`a`", "drop", "identity"]),
        (Swap({"a": "Attention"}), "swapped: 1 module", ["`a`", "swap", "Attention"]),
    ],
)
def test_every_edit_is_told_in_words_and_in_a_table(edit, summary, row):
    text = card(plan=Plan((edit,)))

    assert f"- {summary}\n" in text
    assert tables(text)[-1][1] == row


@pytest.mark.parametrize(("layers", "collapsed"), [(LONG, False), (LONG + 1, True)])
def test_a_long_list_of_layers_collapses(layers, collapsed):
    text = card(plan=Plan((Narrow({f"layer{i}": Width(i + 1) for i in range(layers)}),)))

    assert ("<details>" in text) == ("</details>" in text) == collapsed
    assert len(tables(text)[-1]) == layers + 1


def test_a_stand_in_says_that_it_is_one():
    assert "stands in" in card(structure="stand-in")
    assert "stands in" not in card()


def test_the_recipe_and_the_command_that_follows_it_are_written_out():
    text = card()

    assert (
        "- method: prune\n"
        "- budget: 25 % of the multiply-accumulates of the base\n"
        "- options: round_to 4\n"
        "- teachers: small\n"
        "- data: digits\n"
        "- schedule: epochs 40, lr 0.002\n"
        "- seed: 7\n"
    ) in text
    assert "\nzoo build small_25\n" in text
    assert "\nzoo verify small_25\n" in text
    assert 'zoo.load("small_25")\n' in text


def test_a_model_made_otherwise_than_its_namesake_makes_none_of_its_claims():
    reported = (Reported({"top1": 0.7975}),)
    namesake = replace(ENTRY, reported=reported, origin=Origin("org/repo", "torch-dag"), note="a note")
    text = card(namesake, recipe={"method": "prune", "budget": {"macs": 0.25, "params": None}, "options": {}})

    assert "zoo build" not in text
    assert "reported" not in text
    assert "org/repo" not in text
    assert "a note" not in text
    assert 'zoo.load("./small_25")' in text
    assert "\nzoo verify ./small_25\n" in text
    assert "- budget: 25 % of the multiply-accumulates of the base\n" in text


def test_a_recipe_read_back_from_json_is_still_the_entry_s():
    recipe = {
        "method": "prune",
        "budget": {"macs": 0.25, "params": None},
        "options": {"round_to": 4},
        "data": "digits",
        "teachers": ["small"],
        "schedule": {"lr": 0.002, "epochs": 40},
        "seed": 7,
    }

    assert card(recipe=recipe).replace("lr 0.002, epochs 40", "epochs 40, lr 0.002") == card()


def test_licence_and_source_are_stated():
    text = card(replace(ENTRY, note="mind this", origin=Origin("org/repo", "torch-dag", "3784126")))

    assert (
        f"- licence: Apache-2.0\n- base: {DENSE}\n- source: https://example.org/results\n"
        "- converted from: org/repo at 3784126 (torch-dag)\n- note: mind this\n"
        "- paper of the architecture: Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385\n"
        f"- paper of the method: {METHODS['prune'].title}, {METHODS['prune'].url}\n"
    ) in text


def test_a_licence_that_the_hub_has_no_id_for_is_named():
    found = data(card(replace(ENTRY, license="cvnets-license")))

    assert (found["license"], found["license_name"]) == ("other", "cvnets-license")


def test_sections_without_content_are_left_out():
    bare = Entry("bare", "own", "bare", "bare", "image-classification", "recipe")
    text = render(bare, Description("bare", BASE), Report("bare", {}), {})

    assert re.findall("^## .*", text, re.M) == ["## Use", "## Structure", "## Verify"]
    assert "Input and preprocessing" not in text
    assert "Measured with" not in text


def test_data_breaks_neither_tables_nor_front_matter():
    nasty = "a|b: 'c'\n---\n# <details>"
    entry = replace(
        ENTRY,
        license=nasty,
        note=nasty,
        reported=(Reported({"top1": 0.5}, of=nasty, device=nasty),),
        recipe=replace(RECIPE, teachers=(nasty,)),
    )
    report = replace(REPORT, data={**DATA, "dataset": nasty, "split": nasty}, hardware=nasty)
    text = card(entry, Plan((Narrow({"x|y": Width(4)}),)), report, BESIDE)

    assert data(text)["license"] == nasty
    assert data(text)["model-index"][0]["results"][0]["dataset"]["split"] == nasty
    first, reported, layers = tables(text)
    shown = "a|b: 'c' --- # &lt;details>"  # a parser drops the cells that a bare pipe would make
    assert first[4] == [f"top-1 on 450 images ({shown}, {shown})", "97.33 %", "", ""]
    assert reported[1] == [shown, "top-1 50 %", shown]
    assert layers[1] == ["`x|y`", "narrow", "4 outputs"]
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# small_25"]
    assert "<details>" not in ModelCard(text).text
    assert not re.search(r"\n\n\n", text)


def test_a_folder_s_place_on_the_disk_stays_private():
    text = card(made(data="/home/me/cats"), report=replace(REPORT, data={**DATA, "dataset": "/home/me/cats"}))

    assert "/home/me" not in text
    assert "trained and measured on cats." in text
