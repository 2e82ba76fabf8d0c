// A captured graph replays any lengths within its plan; streams do not disturb each other; the plan changes
// no bit.
#include "cuda/device_run.h"

namespace pagefill::testing {
namespace {

Problem decode_problem(int64_t first_context) {
  return random_problem({.sequences = {{1, first_context}, {1, 2500}, {1, 64}},
                         .num_q_heads = 8,
                         .num_kv_heads = 2,
                         .head_dim = 64,
                         .query_dtype = DType::kBFloat16,
                         .cache_dtype = DType::kBFloat16});
}
const std::vector<Chunk> kDecode = {{0, 0, 1}, {1, 0, 1}, {2, 0, 1}};

void expect_same_rows(const DeviceRun& a, const DeviceRun& b, int64_t tokens, int64_t heads) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      EXPECT_EQ(a.row(t, h), b.row(t, h)) << "token " << t << ", head " << h;
      EXPECT_EQ(a.lse(t, h), b.lse(t, h)) << "token " << t << ", head " << h;
    }
  }
}

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreate(&stream_), cudaSuccess); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

TEST(CudaGraphs, ReplayOtherLengthsThanWereCaptured) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = decode_problem(1500);
  DeviceRun run(p, kDecode);
  run.take_workspace();
  const Stream stream;
  run.context.cuda.stream = stream.get();
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), cudaSuccess);
  const Status status = run.enqueue();
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (const std::vector<int32_t>& lens :
       {std::vector{1500, 2500, 64}, {1, 1025, 0}, {700, 64, 63}}) {
    run.overwrite(run.views().context_lens, 0, lens);
    ASSERT_EQ(cudaGraphLaunch(executable, stream.get()), cudaSuccess);
    run.finish();
    DeviceRun fresh(p, kDecode);
    fresh.overwrite(fresh.views().context_lens, 0, lens);
    fresh.run();
    expect_same_rows(run, fresh, 3, 8);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(CudaStreams, DoNotDisturbEachOther) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = decode_problem(1500), q = decode_problem(900);
  DeviceRun alone_p(p, kDecode), alone_q(q, kDecode);
  alone_p.run();
  alone_q.run();
  DeviceRun on_first(p, kDecode), on_second(q, kDecode);
  on_first.take_workspace();
  on_second.take_workspace();
  const Stream first, second;
  on_first.context.cuda.stream = first.get();
  on_second.context.cuda.stream = second.get();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(on_first.enqueue().ok());
    ASSERT_TRUE(on_second.enqueue().ok());
  }
  on_first.finish();
  on_second.finish();
  expect_same_rows(on_first, alone_p, 3, 8);
  expect_same_rows(on_second, alone_q, 3, 8);
}

TEST(CudaPlans, ChangeNoBit) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = decode_problem(1500);
  DeviceRun wide(p, kDecode);
  wide.run();
  for (const auto& [chunk, context] : {std::pair{1, 2500}, {3, 100000}, {1, 0}, {0, 2500}}) {
    DeviceRun run(p, kDecode, {.page_size = 16, .extra_table_entries = 500});
    run.context.cuda.max_chunk_size = chunk;
    run.context.cuda.max_context_len = context;
    run.run();
    EXPECT_EQ(run.reported()[0], 0);
    expect_same_rows(run, wide, 3, 8);
  }
}

}  // namespace
}  // namespace pagefill::testing
