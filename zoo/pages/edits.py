"""What each edit of a plan does to which layer, in the words of a card."""

from msgspec import structs

from zoo.structure.plan import Drop, Edit, Factor, Heads, Mask, Narrow, Rank, Width

EDITED = {"narrow": "narrowed", "factor": "factored", "mask": "masked", "drop": "dropped", "swap": "swapped"}


def outcomes(edit: Edit) -> dict[str, str]:
    """What each module that an edit addresses becomes."""
    match edit:
        case Narrow():
            narrowed: dict[str, Width | Heads] = {**edit.widths, **edit.heads}
            return {path: _result(item) for path, item in narrowed.items()}
        case Factor():
            return {path: _result(rank) for path, rank in edit.layers.items()}
        case Mask():
            return dict.fromkeys(edit.paths, "zeros stay zero")
        case Drop():
            return dict(edit.paths)
        case _:
            return dict(edit.classes)


def _result(item: Width | Heads | Rank) -> str:
    match item:
        case Width():
            return ", ".join(f"{count} {what}" for what, count in structs.asdict(item).items() if count is not None)
        case Heads():
            return f"{item.num_heads} heads of {item.head_dim}"
        case _:
            return f"rank {item.rank}" + (", kernel in the last factor" if item.spatial == "last" else "")


def edit_in_words(edit: Edit) -> str:
    """An edit in one line."""
    if isinstance(edit, Narrow):
        counts = {"layer": len(edit.widths), "attention module": len(edit.heads)}
    else:
        counts = {"layer" if isinstance(edit, Factor | Mask) else "module": len(outcomes(edit))}
    parts = [f"{count} {noun}{'s' if count != 1 else ''}" for noun, count in counts.items() if count]
    return f"{EDITED[edit.edit]}: {', '.join(parts) or 'nothing'}"
