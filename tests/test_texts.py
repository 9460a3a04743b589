"""Texts: a classifier of texts comes with its vocabulary, and every verb takes it as it takes one of images."""

import hashlib
import json

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.catalog.entry import Base
from zoo.errors import DataError, RepositoryError, StructureError
from zoo.hub import repository
from zoo.measurement.macs import noise
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.graph.capture import capture
from zoo.structure.graph.certificate import fixed_pixels, outputs_sha256
from zoo.tasks.datasets import dataset
from zoo.tasks.identity import digest
from zoo.tasks.text_classification import Numbered, evaluation_transform
from zoo.training.schedule import Schedule

VOCABULARY = ("<pad>", "<other>", "who", "where", "is", "the", "city", "king", "river", "poet")
BASE = Base("zoo/word_cnn", {"num_classes": 2, "vocabulary": 16, "words": 6, "width": 8, "filters": 8})
WHO, WHERE = ("who is the king", "Who is  the poet ?"), ("where is the city", "where is the river in Rome ?")


def questions():
    """Questions of two classes, some of them longer than what the model reads."""
    told = [(f"{text} {'again ' * number}", label) for number in range(16) for label, text in enumerate(WHO + WHERE)]
    texts, kinds = [text for text, _ in told], ["HUM" if kind < 2 else "LOC" for _, kind in told]
    return datasets.Dataset.from_dict({"text": texts, "label": kinds})


DATA = {"train": questions(), "test": questions()}


@pytest.fixture(scope="module")
def dense():
    """A classifier of two kinds of questions, trained."""
    model = zoo.create(BASE)
    configure_(model, {**config_of(model), "vocabulary": VOCABULARY})
    attach_(model, Description("questions", BASE, task="text-classification"))
    return zoo.distil(model, [], DATA, schedule=Schedule(epochs=6, batch_size=16, lr=0.02))


@pytest.fixture(scope="module")
def whole(dense, tmp_path_factory):
    """The same of integers, and its repository."""
    made = zoo.compress(dense, method="integer", data=DATA)
    place = tmp_path_factory.mktemp("made")
    for split, data in DATA.items():
        data.to_parquet(place / "data" / f"{split}.parquet")
    return made, zoo.save(made, place / "questions_int8", data=str(place / "data"))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Who is Galileo", [2, 4, 1, 0, 0, 0]),
        ("", [0] * 6),
        ("the the\tthe\nthe the the the", [5] * 6),
        ("<pad> <other> who", [1, 1, 2, 0, 0, 0]),
    ],
)
def test_a_text_is_its_words_in_lower_case_cut_or_filled_up(text, ids):
    transform = evaluation_transform({"input_size": (1, 1, 6), "vocab_size": 16, "vocabulary": VOCABULARY})

    for given_as in (text, {"text": text}):
        assert transform(given_as).tolist() == [[ids]]
        assert transform(given_as).dtype == torch.int64


@given(st.text(), st.integers(1, 40))
def test_whatever_a_text_holds_its_ids_are_those_of_the_vocabulary(text, length):
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    ids = Numbered(numbers, length)(text)

    assert ids.shape == (1, 1, length)
    assert 0 <= int(ids.min()) <= int(ids.max()) < len(VOCABULARY)


def test_a_classifier_of_texts_learns_and_names_its_classes(dense):
    assert zoo.evaluate(dense, DATA)["top1"] == 1
    assert config_of(dense)["label_names"] == ["HUM", "LOC"]
    assert dense(zoo.transform(dense)("Who is the poet ?")[None]).argmax().item() == 0


def test_it_becomes_integers_that_are_right_as_often_and_give_the_same_bytes_wherever_they_run(dense, whole):
    made, folder = whole
    ids = noise(made, 64, seed=1)
    loaded, fast = zoo.load(folder), zoo.load(folder, backend="onnxruntime")

    assert {node.op for node in made.zoo_entry.graph.nodes} >= {"qembedding", "qconv2d", "qlinear"}
    assert zoo.evaluate(loaded, DATA, against=dense)["agreement"] == 1
    assert zoo.measure(made) == zoo.measure(dense)
    with torch.no_grad():
        expected = made(ids)
        assert all(torch.equal(expected, model(ids)) for model in (loaded, fast))
        assert torch.equal(expected, torch.cat([made(each) for each in ids.split(7)]))
        assert (expected - dense(ids)).norm() < 0.05 * dense(ids).norm()


def test_its_fixed_texts_are_of_all_its_ids(whole):
    made, folder = whole
    drawn, ends = fixed_pixels(made)

    assert drawn.tolist() == [[[((1103515245 * i + 12345) >> 16) % 16 for i in range(6)]]]
    assert set(ends.flatten().tolist()) == {0, 15}
    assert outputs_sha256(made) == json.loads((folder / "config.json").read_text())["zoo"]["outputs_sha256"]


def test_verify_measures_it_on_the_very_texts_wherever_they_lie(whole, tmp_path):
    _, folder = whole
    found = zoo.verify(folder, data=DATA)

    assert found.passed
    assert {"top1", "bytes"} <= {row.figure for row in found.rows if row.verdict == "agrees"}
    others = {"test": DATA["test"].select(range(32))}
    assert not zoo.verify(folder, data=others).passed


@pytest.mark.parametrize("of_integers", [False, True])
def test_onnx_has_its_ids_and_its_vocabulary(of_integers, dense, whole, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = whole[0] if of_integers else dense
    file = zoo.export(model, onnx=tmp_path / "questions.onnx")
    ids = noise(model, 3, seed=2)
    (found,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": ids.numpy()})
    told = {each.key: each.value for each in onnx.load(file).metadata_props}

    torch.testing.assert_close(torch.from_numpy(found), model(ids).detach(), rtol=1e-5, atol=1e-5)
    assert json.loads(told["vocabulary"]) == list(VOCABULARY)
    assert "pixels" not in told
    assert "int64, token ids, 0..15" in onnx.load(file).doc_string


def test_its_card_speaks_of_texts(whole):
    card = (whole[1] / "README.md").read_text()

    assert "pipeline_tag: text-classification" in card
    assert 'logits = model(zoo.transform(model)("some text")[None])' in card
    assert "from the token ids to the logits" in card
    assert "on 64 texts" in card
    assert "image" not in card.partition("## How it was made")[0]


def test_it_becomes_a_graph_as_a_model_of_images_does(dense):
    made, graph = capture(dense, noise(dense, 1))
    ids = noise(dense, 5, seed=3)

    assert graph.nodes[0].op == "embedding"
    torch.testing.assert_close(made(ids), dense(ids))


def test_a_stream_and_a_table_of_texts_are_the_same_rows():
    numbered = DATA["test"].cast_column("label", datasets.ClassLabel(names=["HUM", "LOC"]))
    table, stream = dataset(DATA, "test"), dataset({"test": numbered.to_iterable_dataset()}, "test")

    assert table.column_names == stream.column_names == ["image", "label"]
    assert table.features == stream.features
    assert [row["image"] for row in table] == [{"text": text} for text in DATA["test"]["text"]]
    assert list(table) == list(stream)


def test_a_text_is_known_by_its_bytes():
    assert digest({"text": "Wer ist schön?"}).numpy().tobytes() == hashlib.sha256("Wer ist schön?".encode()).digest()


@pytest.mark.parametrize(
    ("ids", "found"),
    [(torch.full((4, 1, 1, 6), 16), "0 to 15"), (torch.randn(4, 1, 1, 6), "expected token ids")],
)
def test_what_are_no_ids_of_the_vocabulary_are_refused_before_anything_is_computed(ids, found, dense):
    with pytest.raises(DataError, match=found):
        zoo.compress(dense, method="integer", data=ids)


def test_images_for_a_model_of_texts_and_texts_for_one_of_images_are_one_line(dense):
    with pytest.raises(DataError, match="expected a text, or a row of data with the columns text and label"):
        zoo.evaluate(dense, "digits[:8]", labels={str(digit): digit % 2 for digit in range(10)})
    with pytest.raises(DataError, match="no image that can be decoded"):
        zoo.evaluate(zoo.load("digits_cnn"), DATA, labels={"HUM": 0, "LOC": 1})


@pytest.mark.parametrize("words", [None, (), VOCABULARY * 2])
def test_a_model_without_a_vocabulary_of_its_size_says_what_to_set(words, dense):
    config = {**config_of(dense), "vocabulary": words}

    with pytest.raises(DataError, match=r"set pretrained_cfg\['vocabulary'\]"):
        evaluation_transform(config)


def test_augmentation_of_texts_is_refused(dense):
    with pytest.raises(DataError, match="found hflip, texts are trained on as they are"):
        zoo.distil(dense, [], DATA, augment={"hflip": 0.5})


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("vocab_size", 10**9, "vocab_size"),
        ("vocab_size", -1, "vocab_size"),
        ("vocabulary", ["a" * 10**4], r"vocabulary\[0\]"),
        ("vocabulary", "who is", "vocabulary"),
        ("vocabulary", [3], r"vocabulary\[0\]"),
    ],
)
def test_what_a_repository_says_of_its_vocabulary_is_bounded(key, value, found, whole, tmp_path):
    config = json.loads((whole[1] / "config.json").read_text())
    config["pretrained_cfg"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(RepositoryError, match=found):
        repository.read_config(tmp_path)


def test_more_ids_than_an_embedding_has_are_told_in_one_line(whole):
    made = zoo.load(whole[1])
    configure_(made, {**config_of(made), "vocab_size": 1000})

    with pytest.raises(StructureError, match="fixed inputs"):
        outputs_sha256(made)


def test_methods_that_ask_for_channels_of_images_leave_the_words_alone(dense):
    smaller = zoo.compress(dense, budget=0.6, data=DATA, images=64)

    assert zoo.measure(smaller).macs <= 0.6 * zoo.measure(dense).macs
    assert smaller.embedding.num_embeddings == 16
