"""What a card says reads true of each kind of model, and works for whoever it was not written by."""

import json

import pytest

import zoo
from zoo.catalog.entry import Base, own
from zoo.catalog.report import Report
from zoo.pages.card import published, render
from zoo.structure.description import Description
from zoo.structure.plan import Narrow, Plan, Width
from zoo.verbs.saving import push

TIMM = Base("timm/resnet18.a1_in1k")
PLAN = Plan((Narrow({"conv1": Width(8)}),))
SHA = "ab" * 32
HERE = {"dataset": "./photographs", "split": "test", "images": 100, "input": [3, 32, 32], "sha256": SHA}
MEASURED = {"params": 10, "macs": 100, "top1": 0.5, "agreement": 0.9, "kl": 0.1}
PRUNED = {"method": "prune", "budget": {"macs": 0.5}, "data": "./photographs", "base": "./mine"}
TAUGHT = {**PRUNED, "schedule": {"epochs": 5}, "teachers": ["./mine"]}
ALONE = {**PRUNED, "schedule": {"epochs": 0}}


def card(recipe, plan=PLAN, data=HERE, base=TIMM):
    description = Description("mine_half", base, plan, recipe)
    entry = own("mine_half", "resnet18", description.task, base=base)
    dense = Report("mine", {"params": 20, "macs": 200, "top1": 0.5}, data)
    return render(entry, description, Report("mine_half", MEASURED, data, {"zoo": "0.1.0"}), {}, dense)


def first(recipe, **more):
    return card(recipe, **more).split("# mine_half\n\n")[1].split("\n")[0]


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            ALONE,
            "resnet18, channels pruned to a budget of 50 % of the multiply-accumulates of mine (its author's own "
            "weights); calibrated and measured on photographs.",
        ),
        (
            TAUGHT,
            "resnet18, channels pruned to a budget of 50 % of the multiply-accumulates of mine (its author's own "
            "weights) and distilled from it; trained and measured on photographs.",
        ),
        (
            {**TAUGHT, "teachers": ["timm/resnet50.a1_in1k", "./mine"], "data": "org/pictures"},
            "resnet18, channels pruned to a budget of 50 % of the multiply-accumulates of mine (its author's own "
            "weights) and distilled from timm/resnet50.a1_in1k, mine (its author's own weights); trained on "
            "org/pictures, measured on photographs.",
        ),
        (
            {**ALONE, "base": "me/mine"},
            "resnet18, channels pruned to a budget of 50 % of the multiply-accumulates of me/mine; calibrated and "
            "measured on photographs.",
        ),
        (
            {**ALONE, "method": "lockd", "budget": None},
            "resnet18, layers decomposed by lockd; trained and measured on photographs.",
        ),
    ],
    ids=["no epochs", "distilled", "two teachers", "a base of the Hub", "a method that trains"],
)
def test_the_first_sentence_says_what_was_done_and_from_what(recipe, sentence):
    assert first(recipe) == sentence


def test_a_network_of_nobody_s_architecture_is_called_its_author_s_own():
    description = Description("net", None, graph=zoo.load("digits_cnn").zoo_entry.graph)
    text = render(own("net", "net", description.task), description, Report("net", {}), {})

    assert "\nnet, a network of its author's own.\n" in text


@pytest.mark.parametrize(("made", "word"), [({}, "dense base"), ({"base_method": "prune"}, "base")])
def test_only_what_nobody_compressed_is_called_dense(made, word):
    text = card({**ALONE, **made})

    assert f"| measured | this model | {word} | against the base |" in text
    assert f"| agreement with the {word} |" in text
    assert ("dense" in text) == (word != "base")


def test_the_hub_is_told_no_base_but_one_that_lies_there():
    assert "base_model: timm" not in card(ALONE).split("# mine_half")[0]
    assert "base_model: me/mine\n" in card({**ALONE, "base": "me/mine"})


def test_images_that_are_not_published_are_named_by_their_hash_where_verifying_is_told():
    assert "\nzoo verify ./mine_half --data FOLDER\n" in card(ALONE)
    assert f"in any order, `{SHA}`." in card(ALONE)
    assert SHA not in card(ALONE, data={**HERE, "dataset": "digits"})


@pytest.mark.parametrize("name", ["./mine_half", "path/to/mine_half", "you/mine_half"])
def test_a_published_card_has_the_address_that_it_is_published_at(name):
    text = card(ALONE).replace("./mine_half", name)

    assert 'model = zoo.load("me/half")\n' in published(text, "me/half")
    assert "\nzoo verify me/half --data FOLDER\n" in published(text, "me/half")
    assert published(published(text, "me/half"), "me/half") == published(text, "me/half")
    assert len(published(text, "me/half").splitlines()) == len(text.splitlines())


def test_a_published_card_of_integers_names_the_address_for_each_backend():
    fast = 'zoo.load("{}", backend="onnxruntime") gives'

    assert published(fast.format("./half"), "me/half") == fast.format("me/half")


def test_a_model_of_the_catalog_keeps_its_name_wherever_it_is_published():
    text = (zoo.catalog.EMBEDDED / "digits_cnn" / "README.md").read_text()

    assert published(text, "me/digits_cnn") == text


def test_a_card_tells_no_command_that_fails_elsewhere():
    """The package is in no index yet, so that nobody could install it by its name."""
    assert "pip install" not in card(ALONE)


def test_a_model_that_was_compressed_twice_says_so_of_its_base(tmp_path):
    half = zoo.compress(zoo.load("digits_cnn_pruned_50"), budget=0.8, data="digits", images=32)
    zoo.save(half, tmp_path / "twice")

    recipe = json.loads((tmp_path / "twice" / "config.json").read_text())["zoo"]["recipe"]
    assert (recipe["method"], recipe["base_method"]) == ("prune", "prune")


@pytest.mark.parametrize("to", ["a/b/c", "half", "me/my half", "me/half/"])
def test_what_is_neither_a_repository_s_name_nor_a_folder_is_refused_in_a_line(to, tmp_path):
    zoo.save(zoo.load("digits_cnn"), tmp_path / "half")

    with pytest.raises(zoo.errors.RepositoryError, match=f"^{to} is neither ORG/NAME on the Hub nor a folder") as error:
        push(tmp_path / "half", to)
    assert "\n" not in str(error.value)


def test_a_converted_model_is_told_to_be_its_source_s_work_and_our_recipe_to_be_ours():
    entry = zoo.info("resnet50d_pruned_25")
    came = {"converted_from": {"repo": entry.origin.repo, "format": "torch-dag"}}
    description = Description(entry.name, Base("timm/resnet50d"), PLAN, came)
    text = render(entry, description, Report(entry.name, {"params": 10}), {})

    assert f"\nresnet50d, channels pruned, converted from the torch-dag checkpoint {entry.origin.repo}.\n" in text
    assert "## How it was made" not in text
    assert entry.recipe.note in text.partition("## How one like it is made")[2].partition("## ")[0]
    assert "paper of the method" not in text
