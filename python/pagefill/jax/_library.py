"""libpagefill_jax, the XLA FFI handlers, registered with XLA. A platform is a row of `HANDLERS`."""

from __future__ import annotations

import ctypes

import jax

from pagefill._c.library import PATH

HANDLERS = {
    "cpu": {
        "pagefill_attention": "pagefill_jax_attention",
        "pagefill_append_kv": "pagefill_jax_append_kv",
        "pagefill_merge": "pagefill_jax_merge",
    },
}
"""The symbol of each FFI target, by XLA's names of platforms."""


def register_handlers() -> None:
    """Once, when pagefill.jax is imported. The handlers call the libpagefill that lies beside
    them."""
    path = PATH.with_name("libpagefill_jax.so")
    if not path.is_file():
        raise ImportError(f"pagefill.jax: expected the XLA handlers at {path}, got no such file")
    library = ctypes.CDLL(str(path))
    for platform, symbols in HANDLERS.items():
        for target, symbol in symbols.items():
            capsule = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(target, capsule, platform=platform)
