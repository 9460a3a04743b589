"""WordCnn: a classifier of sentences by convolutions over the embeddings of their words.

    words [B, 1, 1, T] → embeddings [B, 1, T, D] → for k = 3, 4, 5 convolutions over k words, ReLU, the largest of all
    places · side by side · linear

A word is its number in a vocabulary: 0 fills sentences up, its embedding is zero, and 1 stands for words outside. A
sentence is like an image of one channel and one row, whose pixels are words. The network has no recurrent layer and no
tanh, for which integers would need tables. Embeddings begin small, so that words which training hardly sees say little.

Source: Kim, Convolutional Neural Networks for Sentence Classification, section 2, https://arxiv.org/abs/1408.5882
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPANS = (3, 4, 5)  # words that a convolution sees


class WordCnn(nn.Module):
    """A network for sentences of a fixed number of words.

    Args:
        num_classes: of the classifier; 0 leaves it out.
        vocabulary: how many words there are, the two of no meaning included.
        words: T, of a sentence.
        width: D, of an embedding.
        filters: convolutions of each span.
    """

    def __init__(
        self, num_classes: int = 6, vocabulary: int = 4096, words: int = 38, width: int = 64, filters: int = 64
    ) -> None:
        super().__init__()
        self.words, self.num_features = words, filters * len(SPANS)
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.embedding.weight[0])
        self.convs = nn.ModuleList(nn.Conv2d(1, filters, (span, width)) for span in SPANS)
        self.drop_words, self.drop = nn.Dropout(0.2), nn.Dropout(0.5)
        self.reset_classifier(num_classes)
        self.pretrained_cfg = self.default_cfg = {
            "architecture": "word_cnn",
            "num_classes": num_classes,
            "input_size": (1, 1, words),
            "vocab_size": vocabulary,
            "classifier": "linear",
        }

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, randomly initialised classifier in its place; of 0 classes, the identity."""
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Words, int64 [B, 1, 1, T] → embeddings as an image of one channel [B, 1, T, D]."""
        return self.embedding(x).squeeze(1)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Embeddings [B, 1, T, D] → logits [B, num_classes], or the features that the classifier reads."""
        maps = [F.relu(conv(self.drop_words(x))) for conv in self.convs]
        x = torch.cat([F.max_pool2d(each, each.shape[2:]).flatten(1) for each in maps], 1)
        return x if pre_logits else self.linear(self.drop(x))

    def forward(self, x: Tensor) -> Tensor:
        """Words, int64 [B, 1, 1, T] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))
