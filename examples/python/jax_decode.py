"""A prompt in chunks, then a jitted loop that decodes from the same paged cache, in place.

The keys and values of 160 tokens lie in shuffled pages. The decoded rows have the bits of one call
for all of them, which the example checks.
"""

import jax
import jax.numpy as jnp
import numpy as np

import pagefill.jax

NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, PROMPT, ANSWER = 8, 2, 64, 16, 128, 32
TOKENS = PROMPT + ANSWER


@jax.jit
def decode(key_cache, value_cache, page_indices, answer):
    """One token after another: into its slot, then attention over all before it. Compiled once."""

    def step(state, token):
        key_cache, value_cache, context_len = state
        query, key, value = (x[None] for x in token)
        key_cache, value_cache = pagefill.jax.append_kv(
            key, value, key_cache, value_cache, jnp.array([0, 1]), context_len, page_indices[None]
        )
        output = pagefill.jax.prefill_page_attention(
            query, key_cache, value_cache, context_len, page_indices
        )
        return (key_cache, value_cache, context_len + 1), output[0]

    state = (key_cache, value_cache, jnp.array([PROMPT + 1]))
    return jax.lax.scan(step, state, answer)


def main():
    random = np.random.default_rng(0)
    heads = (NUM_Q_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    tokens = [
        jnp.asarray(random.standard_normal((TOKENS, count, HEAD_DIM), np.float32))
        for count in heads
    ]
    num_pages = TOKENS // PAGE_SIZE
    page_indices = jnp.asarray(random.permutation(num_pages + 4)[:num_pages].astype(np.int32))
    caches = [jnp.zeros((NUM_KV_HEADS, num_pages + 4, PAGE_SIZE, HEAD_DIM))] * 2

    # Donated caches are written in place: nothing copies them.
    append = jax.jit(pagefill.jax.append_kv, donate_argnames=("key_cache", "value_cache"))
    key_cache, value_cache = (jnp.array(cache) for cache in caches)
    for begin in range(0, PROMPT, 32):
        query, keys, values = (x[begin : begin + 32] for x in tokens)
        key_cache, value_cache = append(
            keys,
            values,
            key_cache,
            value_cache,
            jnp.array([0, 32]),
            jnp.array([begin + 32]),
            page_indices[None],
        )
        pagefill.jax.prefill_page_attention(query, key_cache, value_cache, begin + 32, page_indices)
    answer = [x[PROMPT:] for x in tokens]
    (key_cache, value_cache, _), decoded = decode(key_cache, value_cache, page_indices, answer)

    whole = pagefill.jax.prefill_page_attention(
        answer[0], key_cache, value_cache, TOKENS, page_indices
    )
    assert np.asarray(decoded).tobytes() == np.asarray(whole).tobytes()
    print(f"{ANSWER} tokens decoded one by one have the bits of one call for all")


if __name__ == "__main__":
    main()
