"""ejkernel's own call, with pagefill behind it: one line before it, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
from ejkernel.modules import prefill_page_attention

import pagefill.ejkernel


def main():
    random = np.random.default_rng(0)
    query = jnp.asarray(random.standard_normal((64, 8, 64), np.float32))
    key_cache, value_cache = jnp.asarray(random.standard_normal((2, 2, 20, 16, 64), np.float32))
    context_len, page_indices = jnp.array([256]), jnp.arange(2, 18)
    operands = (query, key_cache, value_cache, context_len, page_indices)

    def attend(*operands):
        return prefill_page_attention(*operands, platform="xla", sliding_window=100)

    before = jax.jit(attend)(*operands)
    pagefill.ejkernel.register()
    # jit keeps what it has compiled, so this is a function of its own.
    after = jax.jit(lambda *operands: attend(*operands))(*operands)
    print("largest difference:", float(jnp.abs(after - before).max()))
    assert jnp.allclose(after, before, atol=1e-5)


if __name__ == "__main__":
    main()
