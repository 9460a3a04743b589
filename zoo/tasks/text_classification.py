"""Text classification: what is classified are the words of a text, by their numbers in the model's own vocabulary.

Rows of data have `text` and `label`; classes, figures and divergence are those of images. The vocabulary stands in
`pretrained_cfg`, so that it comes with the model: `vocabulary[0]` fills texts up, `vocabulary[1]` stands for words
outside of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.columns import text_of
from zoo.tasks.loader import Transform

PAD, OTHER = 0, 1
EXPECTED = "expected a text, or a row of data with the columns text and label"


@dataclass(frozen=True)
class Numbered:
    """What makes token ids of a text: its words, in lower case, parted where there is space.

    Args:
        numbers: of the words in the vocabulary.
        length: ids of a text, which is cut, or filled up with `PAD`.

    >>> Numbered({"who": 2, "is": 3}, 5)("Who is Galileo").tolist()
    [[[2, 3, 1, 0, 0]]]
    """

    numbers: Mapping[str, int]
    length: int

    def __call__(self, text: Any) -> Tensor:
        """Text → token ids, int64 [1, 1, T]."""
        said = text if isinstance(text, str) else text_of(text)
        if said is None:
            raise DataError(f"found {type(text).__name__}, {EXPECTED}")
        ids = torch.full((1, 1, self.length), PAD)
        known = [self.numbers.get(word, OTHER) for word in said.lower().split()[: self.length]]
        ids[0, 0, : len(known)] = torch.tensor(known, dtype=torch.int64)
        return ids


def evaluation_transform(pretrained_cfg: Mapping[str, Any]) -> Transform:
    """What makes token ids of a text.

    Args:
        pretrained_cfg: `input_size` ([1, 1, T]), `vocab_size` and `vocabulary`, the words by their numbers.

    Returns:
        A function from a text, or a row's value that holds one, to int64 [1, 1, T].

    Raises:
        DataError: there is no vocabulary, or more words than ids.
    """
    words, count = pretrained_cfg.get("vocabulary"), pretrained_cfg.get("vocab_size") or 0
    if not words or len(words) > count:
        raise DataError(
            f"pretrained_cfg: found a vocabulary of {len(words or ())} words for {count} token ids: set "
            "pretrained_cfg['vocabulary'] to the words by their numbers, the first two what fills up and all others"
        )
    meant = {word: number for number, word in enumerate(words) if number not in (PAD, OTHER)}
    return Numbered(meant, pretrained_cfg["input_size"][-1])


def training_transform(pretrained_cfg: Mapping[str, Any], augment: Mapping[str, Any]) -> Transform:
    """The same: nothing of a text is drawn.

    Raises:
        DataError: augmentation is asked for.
    """
    if augment:
        raise DataError(f"augment: found {', '.join(sorted(augment))}, texts are trained on as they are: leave it out")
    return evaluation_transform(pretrained_cfg)


TEXT_CLASSIFICATION = replace(
    CLASSIFICATION,
    evaluation_transform=evaluation_transform,
    training_transform=training_transform,
    unit="texts",
)
