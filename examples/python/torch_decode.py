"""A layer's attention in PyTorch: a prompt in chunks, then tokens one by one, compiled.

The keys and values of a page lie side by side in one tensor, as engines keep them; the views of it
are read and written in place. The context's length is a tensor, so that one compiled program serves
all.
"""

import torch
from pagefill.torch import append_kv, ragged_page_attention

NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, TOTAL_NUM_PAGES = 8, 2, 64, 16, 32


def attention(query, keys, values, kv_cache, starts, context_lens, page_table):
    """New tokens of one or more sequences go into the cache and attend to all before them."""
    key_cache, value_cache = kv_cache[:, 0].transpose(0, 1), kv_cache[:, 1].transpose(0, 1)
    metadata = (starts, context_lens, page_table)
    append_kv(keys, values, key_cache, value_cache, *metadata)
    return ragged_page_attention(query, key_cache, value_cache, *metadata)


def plain_attention(query, keys, values):
    """torch's own, without pages, of the tokens at the end of the context."""
    group = NUM_Q_HEADS // NUM_KV_HEADS
    query, keys, values = (x.transpose(0, 1)[None] for x in (query, keys, values))
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool)
    mask = mask.tril(keys.shape[2] - query.shape[2])
    output = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask)
    return output[0].transpose(0, 1)


@torch.inference_mode()
def main():
    torch.manual_seed(0)
    query = torch.randn(100, NUM_Q_HEADS, HEAD_DIM)
    keys, values = torch.randn(2, 100, NUM_KV_HEADS, HEAD_DIM)
    kv_cache = torch.zeros(TOTAL_NUM_PAGES, 2, NUM_KV_HEADS, PAGE_SIZE, HEAD_DIM)
    page_table = torch.randperm(TOTAL_NUM_PAGES, dtype=torch.int32)[None, :7]
    wanted = plain_attention(query, keys, values)

    def run(function, begin, end):
        starts = torch.tensor([0, end - begin], dtype=torch.int32)
        context_lens = torch.tensor([end], dtype=torch.int32)
        tokens = (x[begin:end] for x in (query, keys, values))
        output = function(*tokens, kv_cache, starts, context_lens, page_table)
        return (output - wanted[begin:end]).abs().max().item()

    errors = [run(attention, begin, begin + 40) for begin in (0, 40)]
    print(f"80 tokens in 2 chunks: off by {max(errors):.1e}")

    # "aot_eager" needs no C++ compiler; torch's default, "inductor", also fuses other operators.
    decode = torch.compile(attention, fullgraph=True, backend="aot_eager")
    errors += [run(decode, i, i + 1) for i in range(80, 100)]
    print(f"20 tokens one by one, compiled: off by {max(errors):.1e}")
    assert max(errors) < 1e-5


if __name__ == "__main__":
    main()
