"""The primitive of copy_pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from pagefill.jax import _primitive
from pagefill.jax._attention import GIVEN, given_bits, refuse_on_the_cpu
from pagefill.jax._check import check_copy, is_known

NUM_OPERANDS = 3
KEY_CACHE, VALUE_CACHE = 1, 2  # operands that are results as well, as are all that may be given


def _aliases(given: tuple[str, ...]) -> dict[int, int]:
    written = [KEY_CACHE, VALUE_CACHE, *range(NUM_OPERANDS, NUM_OPERANDS + len(given))]
    return {operand: result for result, operand in enumerate(written)}


def _abstract(
    *operands: jax.core.ShapedArray, given: tuple[str, ...]
) -> list[jax.core.ShapedArray]:
    if is_known(*operands):
        copies, key_cache, value_cache, *optional = operands
        check_copy(copies, key_cache, value_cache, dict(zip(given, optional, strict=True)))
    return [jax.core.ShapedArray(operands[i].shape, operands[i].dtype) for i in _aliases(given)]


def _batch(
    args: Sequence[jax.Array], dims: Sequence[int | None], **params: Any
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    return _primitive.one_after_another(copy_p, args, dims, **params)


def _attributes(platform: str, given: tuple[str, ...]) -> dict[str, Any]:
    refuse_on_the_cpu(platform, given)
    return {"given": given_bits(given)}


copy_p = _primitive.define(
    "copy_pages", "pagefill_copy_pages", _abstract, _batch, _attributes, _aliases
)


@jax.jit
def copy(operands: Sequence[jax.Array], optional: dict[str, jax.Array]) -> Sequence[jax.Array]:
    given = tuple(name for name in GIVEN if name in optional)
    arguments = [*operands, *(optional[name] for name in given)]
    return list(_primitive.varying_alike(arguments, copy_p.bind(*arguments, given=given)))
