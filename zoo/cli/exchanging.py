"""`zoo import`, `zoo export` and `zoo convert`: other projects' formats, other programs', and our own two."""

from pathlib import Path

import click

from zoo.cli.tables import say


@click.command(
    "import",
    epilog="\b\nzoo import resnet50d_pruned_56 --out build/resnet50d_pruned_56\n"
    "zoo import ./decomposed --base timm/resnet18.a1_in1k --out build/mine --push me/mine\n",
)
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new repository.")
@click.option("--name", help="Of the model.  [default: the catalog's, or the source's]")
@click.option("--base", help="What it was made from, e.g. timm/resnet18.a1_in1k, where the catalog can't say.")
@click.option("--input", "size", type=click.IntRange(1), help="Side of its square input, where the catalog can't say.")
@click.option("--probabilities", is_flag=True, help="Keep a softmax at the end; else the model gives logits.")
@click.option("--push", "to", metavar="ORG/NAME", help="Publish it there too.")
def import_model(
    source: str, out: Path, name: str | None, base: str | None, size: int | None, probabilities: bool, to: str | None
) -> None:
    """Make a repository of SOURCE, a checkpoint of torch-dag or ptdeco.

    SOURCE is a folder with config.dict.json and modules.pt (torch-dag), or with decompose_config.json and
    decompose_state_dict.pt (ptdeco, which needs --base), a model of the list, or ORG/NAME on the Hub. Nothing that it
    holds is run.
    """
    from zoo.verbs.saving import convert, push

    folder = convert(source, out, name=name, base=base, size=size, probabilities=probabilities)
    say(str(folder))
    if to:
        say(push(folder, to))


@click.command("convert", epilog="\b\nzoo convert ./build/mine --graph\nzoo convert me/mine --graph --out build/mine\n")
@click.argument("model")
@click.option("--graph", is_flag=True, help="Its structure as a graph, which needs no timm.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new repository.  [default: MODEL itself]")
def convert_model(model: str, graph: bool, out: Path | None) -> None:
    """Write MODEL's structure in another form beside its plan.

    MODEL is a repository's folder; a name of the list or ORG/NAME on the Hub, with --out. The weights stay as they are;
    zoo.load(..., structure="graph") then builds the model without the library that its base comes from, today or when
    that builds something else, with the same outputs: they are compared before anything is written.
    """
    if not graph:
        raise click.UsageError("expected --graph, the one other form; a checkpoint becomes a repository by zoo import")
    from zoo.verbs.viewing import add_graph

    say(str(add_graph(model, out)))


@click.command(
    "export",
    epilog="\b\nzoo export digits_vit_pruned_25 --onnx build/digits.onnx\n"
    "zoo export digits_vit_lowrank_50 --ptdeco --out build/ptdeco\n",
)
@click.argument("model")
@click.option("--onnx", type=click.Path(path_type=Path), help="The new file, of ONNX.")
@click.option("--ptdeco", is_flag=True, help="decompose_config.json and decompose_state_dict.pt.")
@click.option("--out", type=click.Path(path_type=Path), help="The new folder, of ptdeco.")
def export_model(model: str, onnx: Path | None, ptdeco: bool, out: Path | None) -> None:
    """Write MODEL in another program's format.

    MODEL is a name of the list, ORG/NAME on the Hub, a repository's folder, or a timm id such as
    timm/resnet18.a1_in1k. An ONNX file takes batches of any size, says in its metadata what images must undergo, and is
    compared with the model by onnxruntime before it is written. ptdeco has decomposed models alone, over a timm model
    that whoever reads the folder must know.
    """
    if (onnx is None) != ptdeco or (out is None) == ptdeco:
        raise click.UsageError("expected --onnx FILE, or --ptdeco --out FOLDER")
    if onnx is not None:
        from zoo.verbs.exporting import export

        say(str(export(model, onnx=onnx)))
    if out is not None:
        from zoo.hub.foreign.ptdeco import write_decomposition
        from zoo.structure.describing import describe
        from zoo.verbs.loading import load

        loaded = load(model)
        description = describe(loaded)
        write_decomposition(out, loaded, description.plan)
        say(f"{out}, over {description.base.id if description.base else description.name}")
