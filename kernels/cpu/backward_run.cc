#include "kernels/cpu/backward_run.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "kernels/cpu/backward_task.h"
#include "kernels/work_estimate.h"

namespace flashbias::cpu {
namespace {

// Query tiles that one task prepares.
constexpr int64_t kPreparedTiles = 8;

int64_t CeilDiv(int64_t n, int64_t by) { return (n + by - 1) / by; }

int GroupSize(const AttentionProblem& problem) {
  return problem.num_q_heads / problem.num_kv_heads;
}

// `count` sums of `terms` consecutive runs of `inner` floats.
struct FactorSum {
  const float* from;  // [rows, terms, inner]
  float* to;          // [rows, inner]
  int64_t rows;
  int terms;
  int inner;
};

// A head's share of the work on a block of keys: its query rows that see them.
double KeyBlockCost(const AttentionProblem& problem, int32_t sequence, int64_t key, int kv_head) {
  const Sequence& shape = problem.sequences[sequence];
  const auto q_len = static_cast<double>(shape.q_len);
  const int64_t diagonal = shape.key_start + key - shape.query_start;
  double cost = 0;
  for (int n = 0; n < GroupSize(problem); ++n) {
    double rows = q_len;
    if (problem.mask.causal) rows = std::clamp(q_len - static_cast<double>(diagonal), 0.0, q_len);
    // As many rows see a key as keys are seen by a row in the middle.
    const double keys =
        ExpectedKeys(problem, sequence, kv_head * GroupSize(problem) + n, shape.q_len - 1);
    cost += std::min(rows, keys + kBlockRows);
  }
  return cost;
}

class BackwardBatch {
 public:
  BackwardBatch(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                absl::Span<BackwardWorkspace> workspaces, ForEachItem for_each)
      : problems_(problems), stats_(stats), workspaces_(workspaces), for_each_(for_each) {}

  void Run() {
    for (size_t p = 0; p < problems_.size(); ++p) {
      if (problems_[p].direction == Direction::kBackward) AddProblem(p);
    }
    MakeSkipTables();
    PrepareRows();
    ComputeTasks();
    SumFactors();
    SumSlopes();
  }

 private:
  void AddProblem(size_t index) {
    const AttentionProblem& problem = problems_[index];
    float* dphi_q = problem.gradients.dphi_q;
    float* dphi_k = problem.gradients.dphi_k;
    if (problem.bias_kind == BiasKind::kLowRank) {
      const LowRankBias& bias = problem.low_rank;
      if (bias.phi_q_heads == 1) {
        dphi_q = Partial(dphi_q, problem.total_q, problem.num_q_heads, bias.rank);
      }
      if (bias.phi_k_heads == 1) {
        dphi_k = Partial(dphi_k, problem.total_kv, problem.num_kv_heads, bias.rank);
      }
    }
    for (size_t s = 0; s < problem.sequences.size(); ++s) {
      const Sequence& shape = problem.sequences[s];
      BackwardSequence sequence;
      sequence.problem = &problem;
      sequence.sequence = static_cast<int32_t>(s);
      sequence.query_tiles = CeilDiv(shape.q_len, kColumnTile);
      sequence.query_blocks = CeilDiv(shape.q_len, kBlockRows);
      sequence.rows.resize(problem.num_q_heads * shape.q_len);
      sequence.tile_keys.resize(problem.num_q_heads * sequence.query_tiles);
      sequence.slope_sums.resize(problem.num_q_heads * sequence.query_blocks);
      sequence.dphi_q = dphi_q;
      sequence.dphi_k = dphi_k;
      const KeyRange keys = AdmittedKeysOfAnyRow(shape, problem.mask);
      sequence.key_tile_begin = keys.begin / kKeyTile;
      if (problem.bias_kind == BiasKind::kAlibi && problem.eps > 0 && keys.begin < keys.end) {
        sequence.skip_tables.resize(problem.num_kv_heads);
      }
      sequences_.push_back(std::move(sequence));
      problem_of_.push_back(index);
    }
  }

  // Where heads share a factor: memory for what each contributes, or the tensor itself where there
  // is one head.
  float* Partial(float* tensor, int64_t rows, int heads, int rank) {
    if (tensor == nullptr || heads == 1) return tensor;
    partials_.emplace_back(rows * heads * rank);
    factor_sums_.push_back({.from = partials_.back().data(),
                            .to = tensor,
                            .rows = rows,
                            .terms = heads,
                            .inner = rank});
    return partials_.back().data();
  }

  void MakeSkipTables() {
    struct Item {
      size_t sequence;
      int kv_head;
    };
    std::vector<Item> items;
    for (size_t n = 0; n < sequences_.size(); ++n) {
      for (size_t head = 0; head < sequences_[n].skip_tables.size(); ++head) {
        items.push_back({n, static_cast<int>(head)});
      }
    }
    for_each_(items.size(), [&](size_t item, size_t worker) {
      BackwardSequence& sequence = sequences_[items[item].sequence];
      sequence.skip_tables[items[item].kv_head] =
          MakeKeySkipTable(sequence, items[item].kv_head, workspaces_[worker]);
    });
  }

  void PrepareRows() {
    struct Item {
      size_t sequence;
      int head;
      int64_t tile;
    };
    std::vector<Item> items;
    for (size_t n = 0; n < sequences_.size(); ++n) {
      for (int head = 0; head < sequences_[n].problem->num_q_heads; ++head) {
        for (int64_t t = 0; t < sequences_[n].query_tiles; t += kPreparedTiles) {
          items.push_back({n, head, t});
        }
      }
    }
    std::vector<TaskStats> item_stats(items.size());
    for_each_(items.size(), [&](size_t item, size_t worker) {
      BackwardSequence& sequence = sequences_[items[item].sequence];
      const int64_t end = std::min(items[item].tile + kPreparedTiles, sequence.query_tiles);
      item_stats[item] =
          PrepareQueryRows(sequence, items[item].head, items[item].tile, end, workspaces_[worker]);
    });
    for (size_t n = 0; n < items.size(); ++n) {
      ProblemStats& stats = stats_[problem_of_[items[n].sequence]];
      stats.tiles_computed += item_stats[n].tiles_computed;
      stats.tiles_skipped += item_stats[n].tiles_skipped;
    }
  }

  void AddTasks(int32_t index, std::vector<BackwardTask>* tasks) const {
    const BackwardSequence& sequence = sequences_[index];
    const AttentionProblem& problem = *sequence.problem;
    const Sequence& shape = sequence.shape();
    const auto add = [&](BackwardPass pass, int head, int64_t begin, int64_t length) {
      tasks->push_back(
          {.pass = pass,
           .sequence = index,
           .head = head,
           .begin = begin,
           .count = static_cast<int32_t>(std::min<int64_t>(kBlockRows, length - begin))});
      return &tasks->back();
    };
    for (int head = 0; head < problem.num_kv_heads; ++head) {
      for (int64_t key = 0; key < shape.kv_len; key += kBlockRows) {
        BackwardTask* task = add(BackwardPass::kKeys, head, key, shape.kv_len);
        // Four products against three.
        task->cost = 4.0 * problem.head_dim * task->count *
                     KeyBlockCost(problem, sequence.sequence, key, head);
      }
    }
    for (int head = 0; head < problem.num_q_heads; ++head) {
      for (int64_t row = 0; row < shape.q_len; row += kBlockRows) {
        BackwardTask* task = add(BackwardPass::kQueries, head, row, shape.q_len);
        task->cost = 3.0 * problem.head_dim * task->count *
                     ExpectedKeys(problem, sequence.sequence, head, row + task->count / 2);
      }
    }
  }

  void ComputeTasks() {
    std::vector<BackwardTask> tasks;
    for (size_t n = 0; n < sequences_.size(); ++n) AddTasks(static_cast<int32_t>(n), &tasks);
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const auto& a, const auto& b) { return a.cost > b.cost; });
    for_each_(tasks.size(), [&](size_t item, size_t worker) {
      ComputeBackwardTask(sequences_[tasks[item].sequence], tasks[item], workspaces_[worker]);
    });
  }

  void SumFactors() {
    for (const FactorSum& sum : factor_sums_) {
      for_each_(static_cast<size_t>(sum.rows), [&](size_t row, size_t /*worker*/) {
        const float* from = sum.from + static_cast<int64_t>(row) * sum.terms * sum.inner;
        for (int i = 0; i < sum.inner; ++i) {
          double total = 0;
          for (int term = 0; term < sum.terms; ++term) {
            total += static_cast<double>(from[term * sum.inner + i]);
          }
          sum.to[static_cast<int64_t>(row) * sum.inner + i] = static_cast<float>(total);
        }
      });
    }
  }

  void SumSlopes() {
    size_t first = 0;  // sequence of the problem
    for (const AttentionProblem& problem : problems_) {
      if (problem.direction != Direction::kBackward) continue;
      const size_t end = first + problem.sequences.size();
      float* to = problem.gradients.dslopes;
      if (to != nullptr && problem.alibi.per_sequence) {
        for (size_t n = first; n < end; ++n) {
          to = SumSlopesOf(n, n + 1, problem.num_q_heads, to);
        }
      } else if (to != nullptr) {
        SumSlopesOf(first, end, problem.num_q_heads, to);
      }
      first = end;
    }
  }

  // Over sequences [begin, end), each head's. Returns what follows the last.
  float* SumSlopesOf(size_t begin, size_t end, int heads, float* to) const {
    for (int head = 0; head < heads; ++head) {
      double sum = 0;
      for (size_t n = begin; n < end; ++n) {
        const int64_t blocks = sequences_[n].query_blocks;
        const double* sums = sequences_[n].slope_sums.data() + head * blocks;
        for (int64_t b = 0; b < blocks; ++b) sum += sums[b];
      }
      *to++ = static_cast<float>(0 - sum);
    }
    return to;
  }

  const absl::Span<const AttentionProblem> problems_;
  const absl::Span<ProblemStats> stats_;
  const absl::Span<BackwardWorkspace> workspaces_;
  const ForEachItem for_each_;
  std::vector<BackwardSequence> sequences_;
  std::vector<size_t> problem_of_;  // of each sequence
  std::deque<std::vector<float>> partials_;
  std::vector<FactorSum> factor_sums_;
};

}  // namespace

double BackwardScratchBytes(const AttentionProblem& problem) {
  const double heads = problem.num_q_heads;
  const auto total_q = static_cast<double>(problem.total_q);
  double bytes = total_q * heads * sizeof(QueryRow);
  if (problem.bias_kind != BiasKind::kLowRank) return bytes;
  const LowRankBias& bias = problem.low_rank;
  const double of_row = heads * bias.rank * sizeof(float);
  if (problem.gradients.dphi_q != nullptr && bias.phi_q_heads < heads) bytes += total_q * of_row;
  if (problem.gradients.dphi_k != nullptr && bias.phi_k_heads < heads) {
    bytes += static_cast<double>(problem.total_kv) * of_row;
  }
  return bytes;
}

void RunBackward(absl::Span<const AttentionProblem> problems, absl::Span<ProblemStats> stats,
                 absl::Span<BackwardWorkspace> workspaces, ForEachItem for_each) {
  BackwardBatch(problems, stats, workspaces, for_each).Run();
}

}  // namespace flashbias::cpu
