"""A small Transformer that reads codes and says what comes next.

Codes are embedded, their places learned; the blocks are pre-norm, attention to what came before and then a wide layer.
The class is read off the features of the last place, so that the last block looks from there alone.

Vaswani et al., "Attention is all you need", NeurIPS 2017, 1706.03762; causal, normalised first: Radford et al.,
"Language models are unsupervised multitask learners", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.data.examples import DataInfo
from fedsim.errors import Fault, FedsimError
from fedsim.models.mlp import outputs_of
from fedsim.registry import register

Count = Annotated[int, Field(ge=1)]


class Block(nn.Module):
    """Attention to what came before, then a wide layer.

    Written out: torch's fused attention has no forward derivative, of which step controls make use.

    Args:
        width: features of a place.
        heads: of the attention, a divisor of it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.attend = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, places: int) -> Tensor:
        """x (n, t, width) → (n, places, width): what the last ``places`` of x become."""
        seen = self.first(x)
        query = self._apart(self.query(seen[:, -places:]))
        key, value = (self._apart(part) for part in self.attend(seen).chunk(2, dim=-1))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(x.shape[1] - places + 1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ value
        x = x[:, -places:] + self.project(mixed.transpose(1, 2).flatten(2))
        found: Tensor = x + self.wide(self.second(x))
        return found

    def _apart(self, x: Tensor) -> Tensor:
        """(n, t, width) → (n, heads, t, width / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CharTransformer(nn.Module):
    """Codes (n, context) → logits (n, classes).

    Args:
        vocabulary: codes that there are.
        context: codes of an input.
        classes: outputs.
        width: features of a place.
        depth: blocks.
        heads: of each attention.
    """

    def __init__(self, vocabulary: int, context: int, classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes) + self.place
        for block in self.blocks[:-1]:
            x = block(x, x.shape[1])
        logits: Tensor = self.head(self.norm(self.blocks[-1](x, 1)).squeeze(1))
        return logits


@register("model", "char_transformer")
def char_transformer(info: DataInfo, *, width: Count = 64, depth: Count = 2, heads: Count = 4) -> nn.Module:
    """A causal Transformer on codes, whose features at the last place give the class.

    Args:
        info: of a data set of codes, (context,) an input.
        width: features of a place, a multiple of ``heads``.
        depth: blocks of attention and a wide layer.
        heads: of each attention.
    """
    if not info.vocabulary or len(info.shape) != 1:
        given = f"inputs of shape {info.shape}, " + ("codes" if info.vocabulary else "numbers")
        raise FedsimError(f"model 'char_transformer': given {given}; accepted: codes of a vocabulary, (context,)")
    if width % heads:
        raise FedsimError(f"width: given {width}; accepted: a multiple of heads = {heads}")
    return CharTransformer(info.vocabulary, info.shape[0], outputs_of(info), width, depth, heads)


def _check(scenario: Any) -> Iterable[Fault]:
    """Heads of one width each, and no path that has no layers for it."""
    width, heads = (scenario.model.options[name] for name in ("width", "heads"))
    if width % heads:
        yield Fault("width", width, f"a multiple of heads = {heads}", ("model.heads",))
    if scenario.engine.path == "stacked":
        accepted = "'auto', 'vmap' or 'reference': the layers of 'char_transformer' have no stacked twin"
        yield Fault("/engine.path", "stacked", accepted, ("model.name",))


char_transformer.check, char_transformer.takes = _check, "codes"  # type: ignore[attr-defined]
