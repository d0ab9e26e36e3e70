"""The model for codes: what each place may see, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fedsim import registry
from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError
from fedsim.models.char_transformer import Block, CharTransformer

CODES = DataInfo((12,), 97, vocabulary=97)


def model(**options: int) -> CharTransformer:
    torch.manual_seed(0)
    found = registry.make("model", "char_transformer", **options)(CODES)
    assert isinstance(found, CharTransformer)
    return found.double()


def test_codes_become_logits_by_the_features_of_the_last_place() -> None:
    language = model(width=16, depth=3, heads=2)
    codes = torch.randint(97, (5, 12), dtype=torch.int32)
    assert language(codes).shape == (5, 97)
    assert not list(language.buffers())
    kept: list[torch.Tensor] = []
    language.head.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    language(codes)
    assert kept[0].shape == (5, 16)
    assert list(language.named_modules())[-1][1] is language.head


def test_the_last_place_reads_all_before_it() -> None:
    language = model(width=16, heads=2)
    codes = torch.randint(97, (1, 12))
    with torch.no_grad():
        before = language(codes)
        for place in range(12):
            changed = codes.clone()
            changed[0, place] = (changed[0, place] + 1) % 97
            assert not torch.allclose(language(changed), before, atol=1e-6), place


def test_a_place_does_not_see_what_follows() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2).double(), torch.randn(2, 12, 16, dtype=torch.float64)
    later = x.clone()
    later[:, 8:] += 1.0
    with torch.no_grad():
        assert torch.allclose(block(x, 12)[:, :8], block(later, 12)[:, :8])
        assert not torch.allclose(block(x, 12)[:, 8:], block(later, 12)[:, 8:], atol=1e-3)
        for places in (1, 5):
            torch.testing.assert_close(block(x, places), block(x, 12)[:, -places:])


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2).double(), torch.randn(3, 12, 16, dtype=torch.float64)
    seen = block.first(x)
    query, key, value = (
        part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (block.query(seen), *block.attend(seen).chunk(2, dim=-1))
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    middle = x + block.project(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(x, 12), middle + block.wide(block.second(middle)))


@pytest.mark.parametrize("name", ["mlp", "logistic", "linear", "single_index"])
def test_models_for_numbers_refuse_codes(name: str) -> None:
    with pytest.raises(FedsimError, match=rf"'{name}': given codes of a vocabulary of 97; accepted: numbers"):
        registry.make("model", name)(CODES)


def test_numbers_and_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(FedsimError, match=r"given inputs of shape \(12,\), numbers; accepted: codes"):
        registry.make("model", "char_transformer")(DataInfo((12,), 97))
    with pytest.raises(FedsimError, match="width: given 16; accepted: a multiple of heads = 3"):
        registry.make("model", "char_transformer", width=16, heads=3)(CODES)
