"""The command line: arguments in; an exit code, a result on stdout and at most one line of complaint on stderr out."""

import json
import shutil
import subprocess
import sys

import pytest

import zoo
from zoo import catalog
from zoo.cli import cli, main
from zoo.tasks.digits import digits

CNN = catalog.EMBEDDED / "digits_cnn_pruned_25"


@pytest.fixture
def run(capsys):
    """A function that runs the command line in this process: arguments → (exit code, stdout, stderr)."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def repository(tmp_path):
    """A copy of an embedded repository that a test may damage."""
    return shutil.copytree(CNN, tmp_path / "model")


def alter(path, change):
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def one_line(text):
    """The last line of stderr, which is all there is of an error: no traceback."""
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


# Results.


@pytest.mark.parametrize(
    ("arguments", "expected", "missing"),
    [
        (["list"], ["digits_cnn", "digits_vit", "embedded", "25%"], ["Error"]),
        (["list", "vit"], ["digits_vit", "digits_vit_pruned_25"], ["digits_cnn"]),
        (["list", "*_25"], ["digits_cnn_pruned_25", "digits_vit_pruned_25"], ["_50"]),
        (["list", "--method", "prune"], ["digits_cnn_pruned_25"], ["dense"]),
        (["list", "nothing"], ["name"], ["digits"]),
        (["show", "digits_cnn_pruned_25"], ["digits_cnn", "1 x 32 x 32", "apache-2.0", "round_to 4"], ["note"]),
        (["show", "digits_cnn_pruned_25"], ['zoo.load("digits_cnn_pruned_25")', "https://scikit-learn.org"], []),
        (["show", "digits_cnn_int8"], ["a graph", "integer"], ["that of the base"]),
        (["--version"], [f"zoo {zoo.__version__}"], []),
        (["--help"], ["list", "show", "compress", "build", "push", "verify"], []),
        (["-h"], ["Compressed vision models"], []),
        (["verify", "--structure", "digits_vit"], ["digits_vit", "params", "macs", "kmapp", "agrees"], ["top1"]),
    ],
)
def test_a_command_prints_its_result_on_stdout_and_nothing_on_stderr(run, arguments, expected, missing):
    code, out, err = run(*arguments)

    assert (code, err) == (0, "")
    assert [part for part in expected if part not in out] == []
    assert [part for part in missing if part in out] == []


def test_list_prints_json(run):
    listed = json.loads(run("list", "--json")[1])
    rows = listed["models"]

    assert [row["name"] for row in rows] == catalog.names()
    assert sum(count for project in listed["counts"].values() for count in project.values()) == len(rows)
    assert listed["counts"]["torch-dag"] == {"origin": 31}
    assert {row["name"]: row["budget"] for row in rows}["digits_vit_pruned_50"] == {"macs": 0.5, "params": None}


def test_show_prints_json(run):
    shown = json.loads(run("show", "digits_vit", "--json")[1])

    assert shown["base"]["id"] == "timm/vit_tiny_patch16_224"
    assert shown["recipe"]["data"] == "digits"


def test_show_of_a_folder_says_what_it_holds(run, repository, monkeypatch):
    monkeypatch.chdir(repository.parent)
    code, out, err = run("show", "./model")
    held = json.loads((repository / "config.json").read_text())["zoo"]
    results = json.loads((repository / "results.json").read_text())

    assert (code, err) == (0, "")
    for part in (
        "digits_cnn_pruned_25",
        held["base"]["id"],
        "1 x 32 x 32",
        'zoo.load("./model")',
        "narrow of",
        "25.0%",
    ):
        assert part in out
    assert f"params {results['measured']['params']}" in out
    shown = json.loads(run("show", "./model", "--json")[1])
    assert {**held, "results": results} == shown
    repository.joinpath("results.json").unlink()
    assert run("show", "./model")[0] == 0


def test_verify_prints_json(run):
    code, out, _ = run("verify", "--structure", "digits_vit", CNN, "--json")
    found = json.loads(out)

    assert code == 0
    assert [(each["name"], each["passed"]) for each in found] == [("digits_vit", True), ("digits_cnn_pruned_25", True)]
    assert [row["figure"] for row in found[0]["rows"]] == ["params", "macs", "kmapp", "weights_bytes"]
    assert [row["difference"] for row in found[0]["rows"]] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", cli.commands)
def test_help_names_every_argument_and_option(run, name):
    code, out, _ = run(name, "--help")
    parameters = cli.commands[name].params

    assert code == 0
    assert [p.name for p in parameters if p.opts[0] not in out and p.opts[0].upper() not in out] == []


def test_python_m_zoo_is_the_same_command():
    command = subprocess.run([sys.executable, "-m", "zoo", "list", "zzz", "--json"], capture_output=True, text=True)

    assert (command.returncode, command.stdout, command.stderr) == (0, '{\n  "counts": {},\n  "models": []\n}\n', "")


# Mistakes.


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "--method", "shrink"],
        ["list", "--max-macs", ""],
        ["list", "--max-macs", "nan"],
        ["list", "--max-params", "-5"],
        ["list", "--max-params", "2X"],
        ["list", "one", "two"],
        ["show"],
        ["verify"],
        ["push", "/nowhere/at/all", "x"],
        ["compress", "digits_cnn"],
        ["compress", "digits_cnn", "--budget", "half", "--data", "digits", "--out", "x"],
        ["compress", "digits_cnn", "--budget", "1.5", "--data", "digits", "--out", "x"],
        ["compress", "digits_cnn", "--budget", "0", "--data", "digits", "--out", "x"],
        ["compress", "digits_cnn", "--budget", "nan", "--data", "digits", "--out", "x"],
        ["compress", "digits_cnn", "--budget", "0.5", "--params", "0", "--data", "digits", "--out", "x"],
        ["compress", "digits_cnn", "--budget", "0.5", "--data", "digits", "--out", "x", "--epochs", "-1"],
        ["compress", "digits_cnn", "--budget", "0.5", "--data", "digits", "--out", "x", "--set", "round_to"],
    ],
)
def test_a_mistake_in_usage_exits_with_2_and_says_how_it_is_used(run, arguments):
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("Usage: zoo")
    assert "Error:" in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "digits_cnnn"], "no model 'digits_cnnn' in the catalog; did you mean digits_cnn"),
        (["build", "digits_cnnn"], "no model 'digits_cnnn' in the catalog; did you mean digits_cnn"),
        (["show", "./nowhere"], "no folder nowhere: expected a model repository"),
        (
            ["coverage", "test_resnet"],
            "no model 'test_resnet' in the catalog; timm's own of that name is timm/",
        ),
        (["verify", "digits_cnnn"], "no model 'digits_cnnn' in the catalog; did you mean digits_cnn"),
        (["verify", "./nowhere"], "no folder nowhere: expected a model repository, or a name that zoo list shows"),
        (["verify", "."], "has no config.json: not a model repository"),
        (["verify", "digits_cnn", "--data", "digit"], "no data set 'digit'; possible are: digits"),
        (["push", ".", "there"], "has no config.json: not a model repository"),
    ],
)
def test_an_error_is_one_line_and_exits_with_1(run, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert expected in one_line(err)
    assert err.count("\n") == 1


def test_a_mistake_in_a_users_catalog_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("[[model]]\nnme = 'a'")
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))
    code, out, err = run("list")

    assert (code, out) == (1, "")
    assert err.startswith("error: mine.toml: model without a name: unknown key 'nme'")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--budget": "0.0001"}, "budget of 0.0001 of the macs can't be met: what can be cut leaves at least 0."),
        ({"--budget": "1e-5"}, "budget of 1e-05 of the macs can't be met: what can be cut leaves at least 0."),
        ({"--set": "rounding=4"}, "prune has no option 'rounding', known are criterion, round_to, floor, ridge"),
        ({"--set": "criterion=random"}, "no criterion 'random', known are obs, activation, taylor, l1, l2"),
        ({"--data": "digit"}, "no data set 'digit'; possible are: digits, digit_pairs, digit_scenes, a folder"),
        ({"--data": "./nowhere/at/all"}, "./nowhere/at/all: no such folder"),
        ({"BASE": "digits_cn"}, "no model 'digits_cn' in the catalog; did you mean"),
        ({"BASE": "timm/resnet19"}, "has no architecture 'resnet19'"),
        ({"BASE": "./nowhere"}, "no folder nowhere: expected a model repository"),
        ({"--out": "full"}, "full exists and isn't a model repository: choose another folder or remove it"),
        ({"--out": "full/file"}, "full/file exists and isn't a model repository"),
        ({"--out": "taken"}, "taken.work exists and isn't of a build: choose another folder or remove it"),
    ],
)
def test_a_compression_that_cannot_be_done_says_why_in_one_line_and_leaves_nothing(
    run, tmp_path, monkeypatch, changed, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "taken.work").mkdir()
    (tmp_path / "taken.work" / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    options = {"--budget": "0.5", "--data": "digits", "--out": "new/model", **changed}
    base = options.pop("BASE", "digits_cnn")
    code, out, err = run("compress", base, *(word for option in options.items() for word in option))

    assert (code, out) == (1, "")
    assert one_line(err).startswith("error: ")
    assert expected in one_line(err)
    assert err.count(expected) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("accelerate", ["verify", "digits_cnn"], "eval"),
        ("datasets", ["verify", "digits_cnn"], "eval"),
        ("sklearn", ["verify", "digits_cnn"], "eval"),
        ("datasets", ["compress", "digits_cnn", "--budget", "0.5", "--data", "digits", "--out", "new"], "eval"),
        ("jinja2", ["compress", "digits_cnn", "--budget", "0.5", "--data", "digits", "--out", "new"], "build"),
    ],
)
def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    run, monkeypatch, tmp_path, package, arguments, extra
):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    digits.cache_clear()
    code, out, err = run(*arguments)

    assert (code, out) == (1, "")
    assert "isn't installed" in one_line(err)
    assert one_line(err).endswith(f"pip install 'compressed-zoo[{extra}]'")
    assert not (tmp_path / "new").exists()


# Repositories that aren't what they say.


def test_verify_of_altered_results_says_what_differs_and_exits_with_1(run, repository):
    alter(repository / "results.json", lambda data: data["measured"].update(top1=0.5, params=1))
    code, out, err = run("verify", repository)
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines() if "s" in line and line[1:2].isalpha()}

    assert code == 1
    assert err == "digits_cnn_pruned_25: these 450 images are those that its figures are of\n"
    verdicts.pop("digits_cnn_pruned_25")  # the table's head
    agree = dict.fromkeys(("macs", "kmapp", "weights_bytes", "agreement", "kl"), "agrees")
    assert verdicts == {"params": "differs", "top1": "differs", **agree}


def test_verify_of_several_models_has_a_row_for_each_and_fails_if_one_does(run, repository):
    alter(repository / "results.json", lambda data: data["measured"].update(params=1))
    code, out, err = run("verify", "--structure", repository, "digits_cnn")

    assert (code, err) == (1, "")
    assert "params differs, claimed 1" in next(line for line in out.splitlines() if "digits_cnn_pruned_25" in line)
    assert next(line for line in out.splitlines() if "digits_cnn " in line).split()[-1] == "agrees"


def test_verify_of_an_accuracy_that_names_no_data_asks_for_it(run, repository):
    alter(repository / "results.json", lambda data: data.pop("data"))
    code, out, err = run("verify", repository)

    assert (code, out) == (1, "")
    assert "names no data set for agreement, kl, top1: pass --data" in one_line(err)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors has sha256"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "results.json").write_text("[]"), "results.json holds a list, expected an object"),
        (lambda folder: (folder / "results.json").write_text("{}"), "results.json: missing 'name', 'measured'"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json isn't JSON"),
        (
            lambda folder: alter(folder / "config.json", lambda config: config.pop("zoo")),
            "config.json has no key 'zoo': not written by this package",
        ),
        (
            lambda folder: alter(
                folder / "config.json", lambda config: config["zoo"].update(schema=9, versions={"zoo": "7.1"})
            ),
            "needs zoo >= 7.1; pip install -U compressed-zoo",
        ),
        (
            lambda folder: alter(folder / "config.json", lambda config: config["zoo"]["plan"][0].update(edit="fold")),
            "fold",
        ),
    ],
    ids=["weights altered", "no weights", "results a list", "results empty", "no JSON", "no zoo", "newer", "edit"],
)
def test_a_damaged_repository_is_refused_in_one_line(run, repository, damage, expected):
    damage(repository)
    code, out, err = run("verify", repository)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize(
    ("where", "key", "value", "expected"),
    [
        (("zoo", "recipe"), "options", 5, "config.json: zoo.recipe.options is 5, expected a table"),
        (("zoo", "recipe"), "options", None, "config.json: zoo.recipe.options is None, expected a table"),
        (("zoo", "recipe"), "budget", 0.5, "config.json: zoo.recipe.budget is 0.5, expected a table"),
        (
            ("zoo", "recipe", "budget"),
            "macs",
            "half",
            "json: zoo.recipe.budget.macs is 'half', expected a number",
        ),
        (
            ("zoo", "recipe"),
            "teachers",
            "digits_cnn",
            "json: zoo.recipe.teachers is 'digits_cnn', expected a list",
        ),
        (("zoo",), "plan", [{"edit": "narrow", "widths": 3}], "zoo.plan[0].widths is 3, expected a table"),
        (("pretrained_cfg",), "input_size", 32, "config.json: pretrained_cfg.input_size is 32, expected channels"),
    ],
)
def test_show_of_a_damaged_folder_is_refused_in_one_line(run, repository, where, key, value, expected):
    def damage(config):
        for part in where:
            config = config[part]
        config[key] = value

    alter(repository / "config.json", damage)
    code, out, err = run("show", repository)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


def flip(path):
    """Change the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_push_prints_the_new_place(run, repository, tmp_path):
    code, out, _ = run("push", repository, tmp_path / "hub" / "model")

    assert (code, out) == (0, f"{tmp_path / 'hub' / 'model'}\n")


def test_push_to_a_foreign_folder_is_refused_and_leaves_it_alone(run, repository, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    code, _, err = run("push", repository, tmp_path / "papers")

    assert code == 1
    assert "papers exists and isn't a model repository: choose another folder or remove it" in one_line(err)
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["thesis.tex"]
