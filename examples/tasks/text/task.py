"""Is a sentence for or against? An encoder like BERT's, ids and mask; the language is generated here."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from leanfront import Task

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained

WORDS, LENGTH, WIDTH = 40, 12, 32
NOT, GOOD, BAD = 1, range(2, 8), range(8, 14)
"""Of the words; 0 fills sentences up, and the others say nothing."""


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.encoder(self.words(ids) + self.places, src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(2).float()
        return self.head((found * weights).sum(1) / weights.sum(1))


class Sentences(Dataset):
    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {"ids": self.ids[index], "mask": (self.ids[index] != 0).long()}, self.labels[index]


def sentences(count: int) -> tuple[Tensor, Tensor]:
    """Ids (N, LENGTH) and whether the good words, and bad ones after a NOT, are more (N,)."""
    ids = torch.randint(1, WORDS, (4 * count, LENGTH))
    ids[torch.arange(LENGTH) >= torch.randint(4, LENGTH + 1, (len(ids), 1))] = 0
    ids = torch.where((ids >= 14) & (torch.rand(ids.shape) < 0.2), NOT, ids)
    said = ((ids >= GOOD[0]) & (ids <= GOOD[-1])).long() - ((ids >= BAD[0]) & (ids <= BAD[-1])).long()
    said[:, 1:] = torch.where(ids[:, :-1] == NOT, -said[:, 1:], said[:, 1:])
    clear = said.sum(1) != 0
    return ids[clear][:count], (said.sum(1) > 0).long()[clear][:count]


@trained(epochs=12, rate=0.003)
def task() -> Task:
    splits = [Sentences(*split) for split in halves(*sentences(2000))]
    example = {
        "ids": torch.ones(1, LENGTH, dtype=torch.int64),
        "mask": torch.ones(1, LENGTH, dtype=torch.int64),
    }
    return Task(Encoder(), example, *splits)
