"""What a compressed model forgot: the classes that are named are those that lost more than chance takes."""

import copy
import json
from itertools import product

import pytest
import torch
from scipy.stats import binomtest

import zoo
from zoo.catalog.report import Forgotten, Report
from zoo.pages import classes, style
from zoo.tasks.classification.forgotten import LEVEL, MOST, chance, forgotten
from zoo.verbs.measuring import report_of


@pytest.mark.parametrize(("lost", "won"), [*product((0, 1, 4, 20), (0, 1, 7))])
def test_the_chance_of_a_loss_is_the_one_sided_test_of_scipy(lost, won):
    expected = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0

    assert chance(lost, won) == pytest.approx(expected, rel=1e-12)


def rows(*losses, images=100):
    """Labels, and answers before and after, of classes that lost so many images to class 0."""
    labels = torch.arange(len(losses)).repeat_interleave(images)
    after = labels.clone()
    for number, count in enumerate(losses):
        after[number * images : number * images + count] = 0
    return labels, labels.clone(), after


def test_a_class_that_lost_is_named_with_what_it_is_taken_for():
    assert forgotten(*rows(0, 1, 12)) == [
        {"class": 2, "images": 100, "before": 100, "lost": 12, "won": 0, "taken_for": [(0, 12)]}
    ]


def test_holm_holds_each_further_class_against_a_milder_limit():
    """Of three classes six lost images, 1/64, aren't enough for the first; beside two worse ones they are."""
    assert LEVEL / 4 < 2**-6
    assert [row["class"] for row in forgotten(*rows(0, 0, 0, 6))] == []
    assert [row["class"] for row in forgotten(*rows(0, 20, 10, 6))] == [1, 2, 3]


def test_by_chance_hardly_ever_any_class_seems_forgotten():
    torch.manual_seed(0)
    labels = torch.arange(50).repeat_interleave(40)
    alarms = 0
    for _ in range(100):
        wrong = (labels + 1) % 50
        before, after = (torch.where(torch.rand(len(labels)) < 0.8, labels, wrong) for _ in range(2))
        alarms += bool(forgotten(labels, before, after))

    assert alarms <= 100 * LEVEL


def test_of_many_classes_those_are_kept_that_lost_most():
    found = forgotten(*rows(*range(60)))

    assert [row["class"] for row in found] == [*range(59, 59 - MOST, -1)]


@pytest.fixture(scope="module")
def cut():
    """A model that says 3 no more, and what was measured of it."""
    dense = zoo.load("digits_cnn")
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.fc.bias[3] = -1e3
    return report_of(model, "digits", against=dense, name="cut")


def test_evaluation_beside_a_reference_finds_the_class_that_was_cut(cut):
    (found,) = cut.forgotten

    assert found.name == "3"
    assert (found.lost, found.won) == (found.before, 0)
    assert sum(found.taken_for.values()) <= found.lost <= found.images
    assert cut.measured.keys() >= {"top1", "agreement", "kl"}


def test_a_report_keeps_what_was_forgotten_and_says_nothing_where_nothing_was(cut):
    assert Report.from_json(json.loads(json.dumps(cut.to_json()))) == cut
    assert "forgotten" not in Report("a", {}, forgotten=[]).to_json()


def test_the_picture_of_forgotten_classes_says_in_words_which_lost_most():
    lost = classes.lost([Forgotten(f"class {n}", 50, 40, 30 - n, 1, {"other": 30 - n}) for n in range(20)])

    assert len(lost) == classes.MOST
    assert lost[0] == ("class 0", 50, 40, 11, [("other", 30)])
    assert "the 15 of 20 forgotten classes" in classes.alt(lost, 20)
    assert "class 0 lost most, from 40 to 11 of 50 images" in classes.alt(lost, 20)
    assert style.Picture("classes.png", "", [lost], classes).png().startswith(b"\x89PNG")
