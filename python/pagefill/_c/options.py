"""Numbers, names and small metadata, checked and brought into the C interface's types."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_float
from operator import index
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pagefill._c import dlpack, structs, views
from pagefill._c.structs import INT32_MAX, INT32_MIN, INT64_MAX, MAX_THREADS

_Row: TypeAlias = "Sequence[int | np.integer[Any]] | npt.NDArray[np.integer[Any]]"

Integers: TypeAlias = "views.Array | _Row | Sequence[_Row]"
"""Lengths and page numbers: int32 arrays are read in place, other integers are converted."""

Lengths: TypeAlias = "int | np.integer[Any] | Integers"
"""Where one number will do for an array of one."""

DEFAULT_MASK_VALUE = float(np.float32(-0.7) * np.finfo(np.float32).max)
"""At or below -1e4 a masked key is excluded, whatever the number."""


def integer(name: str, value: Any, largest: int = INT64_MAX) -> int:
    """An integer that C can hold. Its rule, as >= 1, is the library's."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if not -largest - 1 <= number <= largest:
        bits = largest.bit_length() + 1
        raise ValueError(f"{name}: expected an integer of {bits} bits, got {number}")
    return number


def threads(number: int) -> int:
    """A number of threads. The C interface's 0, as many as the environment says, is None here."""
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"num_threads: expected None or 1 to {MAX_THREADS}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number as float32. Its rule, as > 0, is the library's."""
    try:
        # Old NumPy takes an array of one for a number.
        if isinstance(value, (bool, np.bool_, str, bytes)) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return c_float(float(value)).value  # what is too large becomes an infinity
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def mask(value: Any) -> float | None:
    """mask_value as float32; None where it is the default."""
    if value is DEFAULT_MASK_VALUE:
        return None
    number = real("mask_value", value)
    return None if number == DEFAULT_MASK_VALUE else number


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(f"{name}: expected a name, got {value!r}")
    return value


def context(num_threads: Any, backend: Any, cpu_target: Any) -> bytes | None:
    """The packed pagefill_context of these, None for the default."""
    if num_threads is None and backend is None and cpu_target is None:
        return None
    return structs.context(
        0 if num_threads is None else threads(integer("num_threads", num_threads)),
        _text("backend", backend),
        _text("cpu_target", cpu_target),
    )


def where(keywords: Mapping[str, Any]) -> bytes | None:
    """`context` of keyword arguments."""
    unknown = keywords.keys() - {"num_threads", "backend", "cpu_target"}
    if unknown:
        raise TypeError(f"{min(unknown)}: expected no such argument, got one")
    return context(*map(keywords.get, ("num_threads", "backend", "cpu_target")))


def attention(
    softmax_scale: Any,
    mask_value: Any,
    attn_logits_soft_cap: Any,
    sliding_window: Any,
    sinks: Any,
    kv_start: Any,
    key_scale: Any,
    value_scale: Any,
) -> bytes | None:
    """The packed pagefill_attention_options of these, None for the default."""
    return structs.attention_options(
        None if softmax_scale is None else real("softmax_scale", softmax_scale),
        None
        if attn_logits_soft_cap is None
        else real("attn_logits_soft_cap", attn_logits_soft_cap),
        None if sliding_window is None else integer("sliding_window", sliding_window),
        mask(mask_value),
        None if sinks is None else views.read("sinks", sinks),
        None if kv_start is None else lengths("kv_start", kv_start),
        None if key_scale is None else views.read("key_scale", key_scale),
        None if value_scale is None else views.read("value_scale", value_scale),
    )


def lengths(name: str, value: Any) -> bytes:
    """A packed int32 tensor of lengths or positions; a Python integer is a tensor of one."""
    if type(value) is np.ndarray and value.dtype == np.int32 and value.ndim:
        return views.read(name, value)
    if type(value) is int:
        array = np.array([integer(name, value, INT32_MAX)], np.int32)
        return _held(views.read(name, array), array)
    return _converted(name, value, int32_lengths)


def pages(name: str, value: Any) -> bytes:
    """A packed int32 tensor of page numbers."""
    if type(value) is np.ndarray and value.dtype == np.int32 and value.ndim:
        return views.read(name, value)
    return _converted(name, value, int32_pages)


def int32_lengths(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Other integers as int32, or an error."""
    if array.size and (array.min() < INT32_MIN or array.max() > INT32_MAX):
        worst = array.max() if array.max() > INT32_MAX else array.min()
        raise ValueError(f"{name}: expected numbers of 32 bits, got {worst}")
    return array.astype(np.int32)


def int32_pages(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Other integers as int32. Numbers beyond it are no page, so they become -1, which is refused
    where a visible key needs the entry and left alone elsewhere."""
    good = (array >= INT32_MIN) & (array <= INT32_MAX)
    return np.where(good, array.astype(np.int32), np.int32(-1))


def page_copies(copies: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    """Three numbers each. Their rules are the library's."""
    try:
        rows = [tuple(copy) for copy in copies]
    except TypeError:
        raise TypeError(
            f"copies: expected (source, destination, num_slots) each, got {copies!r}"
        ) from None
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"copies: expected (source, destination, num_slots) each, got {rows}")
    return [tuple(integer("copies", number, INT32_MAX) for number in row) for row in rows]


_LOST = re.compile(r"got -1 in entry (\d+) of sequence (\d+)$")


def with_given_page(error: ValueError, name: str, given: Any) -> ValueError:
    """The error with the page number as it was before `int32_pages`."""
    message = str(error)
    found = _LOST.search(message)
    numbers = _as_integers(name, given) if found and message.startswith(f"{name}:") else None
    if found is None or numbers is None:
        return error
    entry, sequence = map(int, found.groups())
    number = numbers[entry] if numbers.ndim == 1 else numbers[sequence, entry]
    return ValueError(f"{message[: found.start()]}got {number}{found[0].removeprefix('got -1')}")


def _converted(name: str, value: Any, convert: Any) -> bytes:
    array = _as_integers(name, value)
    if array is None:
        return views.read(name, value)
    array = convert(name, array)
    return _held(views.read(name, array), array)


def _as_integers(name: str, value: Any) -> npt.NDArray[Any] | None:
    """The integers to convert; None for what is read in place, or refused by name, as it is."""
    if not isinstance(value, (np.ndarray, np.integer, Sequence)):
        if not hasattr(value, "__dlpack__") or not dlpack.holds_other_integers(name, value):
            return None
        value = np.from_dlpack(value)
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: expected rows of one length, got: {error}") from None
    if array.ndim == 0:  # one number
        array = array.reshape(1)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int32)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected dtype int32 or other integers, got {array.dtype.name}")
    return array


def _held(packed: bytes, owner: object) -> bytes:
    held = structs.Held(packed)
    held.owner = owner
    return held
