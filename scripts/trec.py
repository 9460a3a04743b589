"""Train the classifier of questions that MRT quantized a network of, and quantize it.

    python scripts/trec.py FOLDER OUT

FOLDER holds TREC's questions, train.txt and test.txt, of a line `CLASS:kind words ...` each
(https://cogcomp.seas.upenn.edu/Data/QA/QC). For each of three seeds a `zoo/word_cnn` is trained and made one of
integers, with nothing chosen by what the test says, and the accuracy of both on the test is printed. OUT gets the
repositories of the first seed, trec and trec_int8, and the questions as `zoo verify --data OUT/data` takes them. About
two minutes a seed on a core.

Convolutions over words whose embeddings begin at random are known to reach 91.2 % on this test (Kim 2014, CNN-rand).
The 97.84 % of the network that MRT quantized are of 1,102 questions that its source doesn't name; the test has 500.
"""

import argparse
from collections import Counter
from pathlib import Path

import datasets
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.files import free
from zoo.structure.description import Description, attach_, config_of, configure_

CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
MEANINGLESS = ("<pad>", "<other>")
EPOCHS, BATCH, RATE, SEEDS = 8, 64, 3e-3, (0, 1, 2)


def questions(file: Path) -> datasets.Dataset:
    """The text and the class of each line."""
    lines = [line.partition(" ") for line in file.read_text(encoding="latin-1").splitlines() if line.strip()]
    columns = {"text": [words for _, _, words in lines], "label": [label.partition(":")[0] for label, _, _ in lines]}
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(CLASSES))}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds))


def vocabulary_of(texts: list[str], size: int) -> tuple[str, ...]:
    """The most frequent words that are there more than once, behind the two of no meaning."""
    counts = Counter(word for text in texts for word in text.lower().split())
    frequent = counts.most_common(size - len(MEANINGLESS))
    return (*MEANINGLESS, *(word for word, count in frequent if count > 1))


def trained(data: datasets.Dataset, seed: int) -> nn.Module:
    """A network trained on questions."""
    model = zoo.create("zoo/word_cnn", seed=seed)
    config = config_of(model)
    configure_(
        model, {**config, "vocabulary": vocabulary_of(data["text"], config["vocab_size"]), "label_names": CLASSES}
    )
    attach_(model, Description("trec", zoo.Base("zoo/word_cnn"), task="text-classification"))
    words, classes = torch.stack(list(map(zoo.transform(model), data["text"]))), torch.tensor(data["label"])
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(model.train().parameters(), RATE)
    steps = EPOCHS * -(-len(words) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(words)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(words[batch]), classes[batch]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, quantize, say how good both are, and write the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for name in ("trec", "trec_int8"):
        free(args.out / name)
    data = {split: questions(args.folder / f"{split}.txt") for split in ("train", "test")}
    for split, rows in data.items():
        rows.to_parquet(args.out / "data" / f"{split}.parquet")
    for seed in SEEDS:
        model = trained(data["train"], seed)
        whole = zoo.compress(model, method="integer", data=data)
        dense, found = zoo.evaluate(model, data), zoo.evaluate(whole, data, against=model)
        told = f"{found['top1']:.4f} in integers, agreement {found['agreement']:.4f}"
        print(f"seed {seed}: top1 {dense['top1']:.4f}, {told}, of {dense['images']} questions", flush=True)
        if seed == SEEDS[0]:
            zoo.save(model, args.out / "trec", data=str(args.out / "data"))
            zoo.save(whole, args.out / "trec_int8", name="trec_int8", data=str(args.out / "data"))


if __name__ == "__main__":
    main()
