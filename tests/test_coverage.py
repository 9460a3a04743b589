"""What can be pruned of a model, models that become graphs, and the structures of the wheel."""

import json
import logging
from functools import cache, partial

import pytest
import timm
import torch
from analysed import analysed
from click.testing import CliRunner

import zoo
from zoo import catalog
from zoo.catalog.entry import Base, Budget
from zoo.cli import cli
from zoo.compression.channels import checking, planning
from zoo.compression.channels.analysis import exported
from zoo.compression.channels.checking import CLOSE, difference, halves, tried
from zoo.compression.prune import plan_or_graph
from zoo.errors import BudgetError, StructureError
from zoo.measurement.macs import measure
from zoo.structure.base import skeleton
from zoo.structure.description import Description, attach_
from zoo.structure.plan import Plan, apply_
from zoo.verbs import coverage

TARGETS = coverage.targets()
ROUGH = {"criterion": "l2", "ridge": 1.0}  # which channels go, where a test doesn't ask how well they were chosen


def images(count=32, side=32):
    return [torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))]


def small(name="test_resnet"):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    return model


def test_a_small_network_is_covered_by_a_plan():
    found = coverage.coverage("timm/test_resnet")
    assert (found.structure, found.error) == ("plan", None)
    assert found.prunable > 0.95
    assert 0.4 < found.kept <= 0.5
    assert found.off < 1e-9
    assert found.frozen == {"fc": "an output of the model"}


def test_what_no_plan_can_cut_is_said_and_cut_as_a_graph(monkeypatch):
    def unknown(model, analysis, units):
        raise StructureError("no table knows these classes")

    monkeypatch.setattr(planning, "planned", unknown)
    found = coverage.coverage("timm/test_resnet")
    assert found.structure == "graph"
    assert found.kept <= 0.5
    assert found.off < 1e-9


def test_a_plan_that_cannot_leave_so_little_is_given_up_before_it_is_checked(monkeypatch):
    planned, check_, checks = planning.planned, checking.difference, []

    def refused(model, analysis, units):
        if any(g.residual and len(kept) < g.units for g, kept in zip(analysis.groups, units, strict=True)):
            raise StructureError("no table knows the classes that the residual stream passes")
        return planned(model, analysis, units)

    monkeypatch.setattr(planning, "planned", refused)
    monkeypatch.setattr(checking, "difference", lambda *args: checks.append(type(args[3])) or check_(*args))
    found = coverage.coverage("timm/test_resnet", 0.02)
    assert found.structure == "graph"
    assert checks == [torch.export.ExportedProgram]


def test_a_model_that_cannot_be_exported_is_an_answer_and_no_failure(monkeypatch):
    def fails(*arguments):
        raise StructureError("it can't be exported: data-dependent")

    monkeypatch.setattr(planning, "exported", fails)
    assert coverage.coverage("timm/test_resnet").error == "it can't be exported: data-dependent"


def test_a_pruned_graph_is_saved_loaded_and_trained_like_any_model(monkeypatch, tmp_path):
    def unknown(model, analysis, units):
        raise StructureError("no table knows these classes")

    monkeypatch.setattr(planning, "planned", unknown)
    dense = small()
    pruned = zoo.compress(dense, budget=0.5, data=images(8), **ROUGH)
    zoo.save(pruned, tmp_path / "pruned")
    loaded = zoo.load(tmp_path / "pruned")

    assert pruned.zoo_entry.graph is not None
    assert measure(loaded, (3, 32, 32)).macs <= 0.5 * measure(dense, (3, 32, 32)).macs
    with torch.no_grad():
        assert torch.equal(loaded(images()[0]), pruned(images()[0]))
    before = {path: value.clone() for path, value in loaded.named_buffers() if path.endswith("running_mean")}
    loaded.train()(images()[0]).sum().backward()
    assert before
    assert all(not torch.equal(before[path], dict(loaded.named_buffers())[path]) for path in before)
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_what_a_plan_cannot_meet_is_known_before_anything_is_measured(monkeypatch):
    def unknown(model, analysis, units):
        raise StructureError("no table knows these classes")

    calls = []
    for room, name in ((planning, "exported"), (plan_or_graph, "prune")):
        real = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    monkeypatch.setattr(planning, "planned", unknown)
    assert zoo.compress(small(), budget=0.6, data=images(8), **ROUGH).zoo_entry.graph is not None
    assert calls == ["exported", "prune"]
    with pytest.raises(BudgetError, match="what can be cut leaves at least"):
        zoo.compress(small(), budget=1e-4, data=images(8), **ROUGH)
    assert calls == ["exported", "prune", "exported"]


def test_a_graph_is_compressed_again(monkeypatch, caplog):
    def unknown(model, analysis, units):
        raise StructureError("no table knows these classes")

    monkeypatch.setattr(planning, "planned", unknown)
    caplog.set_level(logging.INFO, "zoo")
    pruned = zoo.compress(small(), budget=0.6, data=images(8), **ROUGH)
    assert "test_resnet_pruned_60 becomes a graph: by a plan, the " in caplog.text
    caplog.clear()
    again = zoo.compress(pruned, budget=0.5, data=images(), **ROUGH)
    assert "becomes a graph" not in caplog.text
    assert zoo.measure(again).macs <= 0.5 * zoo.measure(pruned).macs


def test_there_are_29_published_pruned_classifiers():
    assert len(TARGETS) == 32
    assert sorted(path.stem for path in catalog.PLANS.glob("*.json")) == sorted(TARGETS)


@cache
def dense_costs(base, size):
    return measure(skeleton(Base(base)), size)


@pytest.mark.parametrize("name", TARGETS)
def test_the_structure_of_the_wheel_costs_what_was_published(name):
    entry = catalog.info(name)
    plan = Plan.from_json(json.loads((catalog.PLANS / f"{name}.json").read_text())["plan"])
    whole, counts = dense_costs(entry.base.id, entry.input), measure(apply_(skeleton(entry.base), plan), entry.input)
    assert not entry.base.args
    assert counts.macs / whole.macs == pytest.approx(entry.recipe.budget.macs, rel=0.005)
    assert counts.params / whole.params == pytest.approx(entry.recipe.budget.params, rel=0.05)


def test_a_stand_in_is_made_without_weights_and_says_so(caplog):
    model = zoo.create("resnet50d_pruned_25")
    assert "resnet50d_pruned_25 is a stand-in of the published macs and params" in caplog.text
    assert model.zoo_entry.structure == "stand-in"
    assert not model.training
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    shown = CliRunner().invoke(cli, ["show", "resnet50d_pruned_25"]).output
    assert "stand-in" in shown


def test_a_stand_in_that_is_saved_still_says_so(tmp_path):
    zoo.save(zoo.create("resnet50d_pruned_25"), tmp_path / "saved")
    assert zoo.load(tmp_path / "saved").zoo_entry.structure == "stand-in"


SMALL_SWIN = {
    "img_size": 32,
    "window_size": 4,
    "depths": (1, 1),
    "num_heads": (2, 2),
    "embed_dim": 16,
    "num_classes": 5,
}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("swinv2_tiny_window8_256", SMALL_SWIN),
        ("swinv2_cr_tiny_ns_224", SMALL_SWIN),
        ("xcit_nano_12_p16_224", {"img_size": 32, "depth": 1, "num_classes": 5}),
    ],
)
def test_what_is_computed_once_for_all_images_is_counted_once(name, args):
    """Biases of positions come from small networks of their own, whatever the batch."""
    model = timm.create_model(name, **args).eval()
    analysis = analysed(model, torch.zeros(2, 3, 32, 32))
    assert sum(cost.count for cost in analysis.macs) == measure(model, (3, 32, 32)).macs


def test_a_plan_does_not_cut_what_a_module_computes_again_when_it_is_loaded():
    """The two coordinates of a position, which a small network of its own reads."""
    base = Base("timm/swinv2_cr_tiny_ns_224", SMALL_SWIN)
    dense = coverage.initialised(base)
    dense.pretrained_cfg = {**dense.pretrained_cfg, "input_size": (3, 32, 32)}
    attach_(dense, Description("swin", base))
    model = planning.swapped(dense)
    image = torch.zeros(2, 3, 32, 32)
    trial = planning.by_plan(exported(model, image), model, image, halves)
    cut = planning.planned(model, trial.analysis, trial.units)
    assert cut.stages[0].blocks[0].attn.relative_coordinates_log.shape[1] == 2
    assert cut.stages[0].blocks[0].mlp.fc1.out_features == 32


def test_a_cut_whose_outputs_are_no_numbers_is_no_cut():
    model = small()
    analysis = analysed(model, torch.zeros(2, 3, 32, 32))
    units = [torch.arange(group.units) for group in analysis.groups]
    assert difference(model, analysis, units, small(), torch.zeros(2, 3, 32, 32)) < 1e-9

    class Broken(type(model)):
        def forward(self, x):
            return super().forward(x) * float("nan")

    broken = small()
    broken.__class__ = Broken
    assert difference(model, analysis, units, broken, torch.zeros(2, 3, 32, 32)) == float("inf")


@pytest.mark.parametrize(
    "mixed",
    [
        pytest.param(lambda y: y.roll(1, 0), id="they change places"),
        pytest.param(lambda y: torch.cat([y[:1], y[:-1]]), id="the second gets what the first should"),
        pytest.param(lambda y: torch.cat([y[1:], y[-1:]]), id="the first gets what the second should"),
        pytest.param(lambda y: y + 1e-4 * (len(y) == 1), id="alone it gets something else"),
        pytest.param(lambda y: y + 1e-4 * (len(y) == 2), id="together they get something else"),
    ],
)
def test_a_cut_that_mixes_the_images_of_a_batch_is_no_cut(mixed):
    model = small()
    analysis = analysed(model, torch.zeros(2, 3, 32, 32))
    units = [torch.arange(group.units) for group in analysis.groups]

    class Mixing(type(model)):
        def forward(self, x):
            return mixed(super().forward(x))

    mixing = small()
    mixing.__class__ = Mixing
    assert difference(model, analysis, units, mixing, torch.zeros(2, 3, 32, 32)) > CLOSE


VIT = {"depth": 1, "embed_dim": 32, "num_heads": 4, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "args", "attentions"),
    [
        ("qwen3_vit_88m", {**VIT, "img_size": 32, "pos_embed_grid_size": 2}, 1),
        ("deepseek_vit_412m", {**VIT, "img_size": 32, "patch_size": 8}, 1),
        ("gemma4_vit_167m", {**VIT, "head_dim": 8, "intermediate_size": 64, "position_embedding_size": 16}, 1),
        (
            "sam2_hiera_tiny",
            {
                "embed_dim": 16,
                "stages": (1, 1, 1, 1),
                "window_spec": (4, 2, 2, 1),
                "global_att_blocks": (),
                "global_pos_size": (2, 2),
                "num_classes": 5,
            },
            3,  # the first has one head, whose width scales its logits
        ),
    ],
)
def test_heads_of_encoders_for_large_images_are_cut_by_a_plan(name, args, attentions):
    model = timm.create_model(name, **args).eval()
    model.zoo_entry = Description(name, Base(f"timm/{name}", args))
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    image = torch.zeros(2, 3, 32, 32)
    trial = tried(exported(model, image), model, image, halves, partial(planning.planned, model), "no plan")
    assert trial.off < 1e-12
    assert sum(group.head_dim is not None for group in trial.analysis.groups) == attentions


@pytest.mark.parametrize(("name", "side"), [("tf_efficientnet_cc_b0_4e", 64), ("bat_resnext26ts", 256)])
def test_arguments_that_a_rule_does_not_expect_freeze_and_do_not_fail(name, side):
    model = timm.create_model(name).eval()
    analysis = analysed(model, torch.zeros(2, 3, side, side))
    assert analysis.groups
    assert any(reason.startswith("an operation that isn't understood") for reason in analysis.frozen.values())


@pytest.mark.parametrize(
    ("method", "how"), [("prune", {"budget": 0.6, **ROUGH}), ("low_rank", {"budget": 0.6}), ("falor", {})]
)
def test_a_model_in_train_mode_is_left_in_train_mode_with_its_statistics(method, how):
    model = small().train()
    before = {path: value.clone() for path, value in model.state_dict().items()}
    smaller = zoo.compress(model, data=images(8) * 2, method=method, **how)
    assert all(module.training for module in model.modules())
    assert not smaller.training
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())


def test_a_stand_in_made_again_is_the_one_of_the_wheel():
    made = coverage.find_stand_in(catalog.info("resnet50d_pruned_25"))
    assert made.plan.to_json() == catalog.stand_in(catalog.info("resnet50d_pruned_25"))["plan"]


def test_figures_that_no_widths_meet_are_refused():
    from msgspec.structs import replace

    entry = catalog.info("resnet50d_pruned_25")
    tiny = replace(entry, base=Base("timm/test_resnet"), input=(3, 32, 32))
    impossible = replace(tiny, recipe=replace(entry.recipe, budget=Budget(0.9, 0.1)))
    with pytest.raises(BudgetError, match="expected"):
        coverage.find_stand_in(impossible)


def test_the_command_line_prints_a_table_and_json():
    found = json.loads(CliRunner().invoke(cli, ["coverage", "timm/test_resnet", "--json"]).output)
    assert found[0]["structure"] == "plan"
    shown = CliRunner().invoke(cli, ["coverage", "timm/test_resnet"]).output
    assert "1 left whole, an output of the model: fc" in shown
    assert CliRunner().invoke(cli, ["coverage"]).exit_code == 2


def test_a_target_is_rebuilt_in_a_fresh_process_with_equal_outputs():
    run = CliRunner().invoke(cli, ["coverage", "--targets", "resnet50d_pruned_25", "--json"])
    (row,) = json.loads(run.output)
    assert row["rebuilt_equal"]
    assert row["macs"] == pytest.approx(row["macs_published"], rel=0.005)


def test_a_buffer_that_a_forward_pass_grows_is_saved_as_it_was(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_classes": 5}
    model = timm.create_model("convit_tiny", **args).eval()
    model.zoo_entry = Description("convit", Base("timm/convit_tiny", args))
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    pruned = zoo.compress(model, budget=0.6, data=images(8), **ROUGH)
    zoo.save(pruned, tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path / "pruned")(images()[0]), pruned(images()[0]))
