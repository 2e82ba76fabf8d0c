"""libpagefill_jax, the XLA FFI handlers, registered with XLA. A platform is a row of `HANDLERS`."""

from __future__ import annotations

import ctypes

import jax

from pagefill._c.library import PATH, load

HANDLERS = {
    "cpu": {
        "pagefill_attention": "pagefill_jax_attention",
        "pagefill_append_kv": "pagefill_jax_append_kv",
        "pagefill_copy_pages": "pagefill_jax_copy_pages",
        "pagefill_merge": "pagefill_jax_merge",
    },
    "cuda": {
        "pagefill_attention": "pagefill_jax_attention_cuda",
        "pagefill_attention_scratch": "pagefill_jax_attention_scratch_cuda",
        "pagefill_append_kv": "pagefill_jax_append_kv_cuda",
        "pagefill_copy_pages": "pagefill_jax_copy_pages_cuda",
        "pagefill_merge": "pagefill_jax_merge_cuda",
    },
}
"""The symbol of each FFI target, by JAX's names of platforms."""


def _load() -> ctypes.CDLL:
    path = PATH.with_name("libpagefill_jax.so")
    if not path.is_file():
        raise ImportError(f"pagefill.jax: expected the XLA handlers at {path}, got no such file")
    return load(path)


_library = _load()

PLATFORMS = tuple(p for p in HANDLERS if hasattr(_library, HANDLERS[p]["pagefill_attention"]))
"""Those that this build of pagefill has: CUDA where it was compiled in."""


def register_handlers() -> None:
    """Once, when pagefill.jax is imported. The handlers call the libpagefill that lies beside
    them."""
    for platform in PLATFORMS:
        for target, symbol in HANDLERS[platform].items():
            capsule = jax.ffi.pycapsule(getattr(_library, symbol))
            xlas_name = "CUDA" if platform == "cuda" else platform
            jax.ffi.register_ffi_target(target, capsule, platform=xlas_name)
