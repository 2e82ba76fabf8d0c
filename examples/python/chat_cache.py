"""A toy chat server: several conversations share one paged cache, and a prompt is computed once.

A real model would make the queries, keys and values; here each token has random ones of its own, so
that the answer of a conversation must not depend on how it was served. It is held against plain
attention over the conversation's own tokens.
"""

import numpy as np
import pagefill

NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, TOTAL_NUM_PAGES = 8, 2, 64, 16, 64


class ChatCache:
    """Keys and values of all conversations, in pages that the allocator hands out."""

    def __init__(self) -> None:
        shape = (NUM_KV_HEADS, TOTAL_NUM_PAGES, PAGE_SIZE, HEAD_DIM)
        self.key_cache = np.zeros(shape, np.float32)
        self.value_cache = np.zeros(shape, np.float32)
        self.pages = pagefill.PageAllocator(TOTAL_NUM_PAGES, PAGE_SIZE)

    def extend(self, sequence, query, keys, values):
        """A chunk of a conversation: its tokens go into the cache and attend to all before them."""
        caches = self.key_cache, self.value_cache
        pagefill.copy_pages(self.pages.append(sequence, len(query)), *caches)
        context_len = self.pages.context_len(sequence)
        page_indices = self.pages.page_indices(sequence)
        starts = [0, len(query)]
        pagefill.append_kv(keys, values, *caches, starts, context_len, page_indices[None])
        return pagefill.prefill_page_attention(query, *caches, context_len, page_indices)


def tokens(count, seed):
    """Query, keys and values of `count` tokens."""
    random = np.random.default_rng(seed)
    heads = (NUM_Q_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    return [random.standard_normal((count, h, HEAD_DIM), np.float32) for h in heads]


def plain_attention(query, keys, values):
    """Of the last token, in float64, without pages."""
    group = NUM_Q_HEADS // NUM_KV_HEADS
    keys, values = (np.repeat(x, group, axis=1).astype(np.float64) for x in (keys, values))
    scores = np.einsum("hd,jhd->hj", query[-1], keys) / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hj,jhd->hd", weights / weights.sum(axis=1, keepdims=True), values)


def main():
    cache = ChatCache()
    prompt = tokens(100, seed=0)

    system = cache.pages.add_sequence()
    for begin in range(0, 100, 32):  # chunked prefill
        cache.extend(system, *(x[begin : begin + 32] for x in prompt))
    print("the prompt: 100 tokens in", TOTAL_NUM_PAGES - cache.pages.num_free_pages, "pages")

    for user in (1, 2, 3):  # each continues the same prompt, one token at a time
        chat = cache.pages.fork(system)
        answer = tokens(20, seed=user)
        for i in range(20):
            output = cache.extend(chat, *(x[i : i + 1] for x in answer))
        whole = [np.concatenate([p, a]) for p, a in zip(prompt, answer, strict=True)]
        error = np.abs(output[-1] - plain_attention(*whole)).max()
        assert error < 1e-5, error
        used = TOTAL_NUM_PAGES - cache.pages.num_free_pages
        print(f"user {user}: 20 tokens more; {used} pages in use; off by {error:.1e}")


if __name__ == "__main__":
    main()
