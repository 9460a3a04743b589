"""What `zoo` exports: verbs, lazily, each documented."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import click
import pytest

import zoo
from zoo.cli import cli

MODULES = [name for _, name, _ in pkgutil.walk_packages(zoo.__path__, "zoo.") if name != "zoo.__main__"]
PUBLIC = [
    f"{module}.{name}"
    for module in MODULES
    for name, value in vars(importlib.import_module(module)).items()
    if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module
]
OPTIONS = [(command, parameter) for command in cli.commands.values() for parameter in command.params]


VERBS = [name for name in zoo.__all__ if not inspect.isclass(getattr(zoo, name))]


def public(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_exported_names_are_sorted_and_unique():
    assert sorted(set(zoo.__all__)) == zoo.__all__


@pytest.mark.parametrize("name", zoo.__all__)
def test_an_exported_name_is_a_verb_that_can_be_called(name):
    assert callable(getattr(zoo, name))


def test_dir_shows_what_is_exported():
    assert set(zoo.__all__) <= set(dir(zoo))


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'flops'"):
        zoo.flops  # noqa: B018


def test_no_verb_is_hidden_by_a_room_of_the_same_name():
    assert set(zoo.__all__).isdisjoint(module.name for module in pkgutil.iter_modules(zoo.__path__))


@pytest.mark.parametrize(("room", "verbs"), zoo._ROOMS.items(), ids=list(zoo._ROOMS))
def test_verbs_stay_callable_after_their_room_is_imported(room, verbs):
    module = importlib.import_module(room)

    for verb in verbs:
        assert getattr(module, verb) is getattr(zoo, verb)


def test_importing_the_package_imports_no_room():
    code = "import sys, zoo; print([name for name in sys.modules if name.startswith('zoo.') or name == 'torch'])"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "['zoo.version']"


@pytest.mark.parametrize("path", PUBLIC)
def test_what_is_public_is_documented(path):
    assert public(path).__doc__


def test_one_value_is_exported_beside_the_verbs():
    """What `save` takes of a model that was created with arguments."""
    assert set(zoo.__all__) - set(VERBS) == {"Base"}
    assert zoo.Base("timm/resnet18", {"num_classes": 37}).architecture == "resnet18"


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_what_it_takes_and_returns(name):
    verb = getattr(zoo, name)
    doc = inspect.getdoc(verb)
    taken = [parameter for parameter in inspect.signature(verb).parameters if parameter not in ("self", "cls")]

    assert "Returns:" in doc
    assert [parameter for parameter in taken if f"{parameter}: " not in doc] == []


@pytest.mark.parametrize("name", sorted(set(VERBS) - {"names"}))
def test_a_verb_says_what_it_raises(name):
    """`names` can raise only what a user's own catalog does to it."""
    assert "Raises:" in inspect.getdoc(getattr(zoo, name))


@pytest.mark.parametrize("command", cli.commands.values(), ids=list(cli.commands))
def test_a_command_says_what_it_does_in_one_sentence(command):
    assert command.help.splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    ("command", "parameter"), OPTIONS, ids=[f"{command.name}-{parameter.name}" for command, parameter in OPTIONS]
)
def test_an_option_has_help_and_an_argument_stands_in_the_help_of_its_command(command, parameter):
    if isinstance(parameter, click.Option):
        assert parameter.help
    else:
        assert parameter.make_metavar(click.Context(command)).strip("[].") in command.help
