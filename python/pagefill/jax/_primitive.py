"""How an operation of pagefill becomes one of JAX: a primitive that lowers to an FFI call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pagefill.jax._check import check_environment
from pagefill.jax._library import PLATFORMS

Avals = Sequence[jax.core.ShapedArray]
Aliases = Callable[..., dict[int, int]]
Lowering = Callable[..., Any]


def define(
    name: str,
    target: str,
    abstract: Callable[..., Avals],
    batch: Callable[..., tuple[Sequence[jax.Array], Sequence[int]]],
    attributes: Callable[..., Mapping[str, Any]],
    aliases: Aliases = lambda **params: {},
    on_cuda: Lowering | None = None,
) -> Primitive:
    """A primitive of several results.

    abstract(*avals, **params)   the results' shapes and dtypes, or the error
    batch(args, dims, **params)  the rule of vmap
    attributes(platform, **params)
                                 of the FFI call, as NumPy scalars
    aliases(**params)            operand i and result aliases[i] are one place
    on_cuda(context, *operands, **params)
                                 the lowering for CUDA, where it is another than for the CPU
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def traced(*avals: jax.core.ShapedArray, **params: Any) -> Avals:
        check_environment()
        return abstract(*avals, **params)

    primitive.def_abstract_eval(traced)
    primitive.def_impl(_evaluation(primitive))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = _no_gradient(name)

    def lower(
        platform: str, context: mlir.LoweringRuleContext, *operands: Any, **params: Any
    ) -> Any:
        rule = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases(**params))
        return rule(context, *operands, **attributes(platform, **params))

    mlir.register_lowering(primitive, _wrong_platform(name))
    for platform in PLATFORMS:
        rule: Lowering = functools.partial(lower, platform)
        if on_cuda is not None and platform == "cuda":
            rule = on_cuda
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _evaluation(primitive: Primitive) -> Callable[..., Any]:
    """What runs it outside of jit: jax.disable_jit, jax.checkpoint, a jaxpr that is evaluated."""

    @functools.lru_cache(maxsize=256)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    def evaluate(*operands: jax.Array, **params: Any) -> Any:
        with jax.disable_jit(False):  # there is nothing inside that could run without
            return compiled(tuple(params.items()))(*operands)

    return evaluate


def _no_gradient(name: str) -> Callable[..., NoReturn]:
    def rule(primals: Any, tangents: Any, **params: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name}: pagefill is for inference and has no gradient; expected no differentiation, "
            "got grad, jvp, vjp or linearize. jax.lax.stop_gradient on the arguments lets it pass"
        )

    return rule


def _wrong_platform(name: str) -> Callable[..., NoReturn]:
    def lower(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name}: this build of pagefill runs on {', '.join(PLATFORMS)} (the CUDA backend is "
            "compiled in where nvcc is found); expected a computation for that, got one for "
            f"{', '.join(context.module_context.platforms)}"
        )

    return lower


def varying_alike(
    arguments: Sequence[jax.Array], results: Sequence[jax.Array]
) -> Sequence[jax.Array]:
    """Inside of shard_map: results vary over the axes of the mesh over which some argument varies.

    JAX's names for this have changed; before it tracked it at all, there is nothing to do.
    """
    axes: set[str] = set()
    for argument in arguments:
        axes |= _varying_axes(argument)
    if not axes:
        return results
    names = tuple(sorted(axes))
    if hasattr(jax.lax, "pcast"):
        return [jax.lax.pcast(result, names, to="varying") for result in results]
    return [jax.lax.pvary(result, names) for result in results]  # type: ignore[attr-defined]


def _varying_axes(argument: jax.Array) -> set[str]:
    if not hasattr(jax, "typeof"):
        return set()
    aval = jax.typeof(argument)
    mat = getattr(aval, "manual_axis_type", None)
    return set(mat.varying if mat is not None else getattr(aval, "vma", ()))


def to_front(args: Sequence[jax.Array], dims: Sequence[int | None]) -> list[jax.Array]:
    """The arguments, those that vmap maps with the mapped dimension first."""
    return [
        arg if dim is None else jax.numpy.moveaxis(arg, dim, 0)
        for arg, dim in zip(args, dims, strict=True)
    ]


def one_after_another(
    primitive: Primitive, args: Sequence[jax.Array], dims: Sequence[int | None], **params: Any
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    """vmap as a loop."""
    args = to_front(args, dims)
    mapped = [arg for arg, dim in zip(args, dims, strict=True) if dim is not None]

    def call(mapped_slices: list[jax.Array]) -> Any:
        slices = iter(mapped_slices)
        return primitive.bind(
            *(arg if dim is None else next(slices) for arg, dim in zip(args, dims, strict=True)),
            **params,
        )

    results = jax.lax.map(call, mapped)
    return results, [0] * len(results)
