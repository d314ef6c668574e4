#include "server/codec.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "server/attend_reader.h"
#include "wire/contract.h"
#include "wire/gather.h"
#include "wire/message_writer.h"

namespace flashbias::server {
namespace {

using wire::ResponseNumber;
using wire::TimingNumber;

class AttendStorage final : public ProblemStorage {
 public:
  HostBlock inputs;   // q, k, v and the factors
  HostBlock outputs;  // o, then lse; not initialised: the backend writes every element
  std::vector<std::shared_ptr<const Region>> regions;
  std::optional<wire::RegionPlace> o_place;    // null: in `outputs`
  std::optional<wire::RegionPlace> lse_place;  // null: in `outputs`
  std::vector<Sequence> sequences;
  std::vector<float> slopes;
};

// Places for tensors one after the other in a block, each as aligned as the block itself. Sizes are
// those of bytes that came, or as checked by ValidateAttend: sums of them cannot overflow.
class BlockLayout {
 public:
  size_t Add(size_t bytes) {
    const size_t begin = end_;
    end_ += (bytes + HostAllocator::kAlignment - 1) / HostAllocator::kAlignment *
            HostAllocator::kAlignment;
    return begin;
  }
  // At least one byte, so that no pointer into the block is null.
  size_t size() const { return std::max<size_t>(end_, 1); }

 private:
  size_t end_ = 0;
};

// A slice over memory that `storage` owns; it holds a reference until the transport is done.
grpc::Slice SliceOver(void* data, uint64_t bytes, const std::shared_ptr<ProblemStorage>& storage) {
  auto* reference = new std::shared_ptr<ProblemStorage>(storage);
  return grpc::Slice(
      data, bytes, [](void* held) { delete static_cast<std::shared_ptr<ProblemStorage>*>(held); },
      reference);
}

std::string EncodeTiming(const ResponseTiming& timing) {
  wire::MessageWriter writer;
  writer.Double(TimingNumber::kReceiveSeconds, absl::ToDoubleSeconds(timing.receive));
  writer.Double(TimingNumber::kQueueSeconds, absl::ToDoubleSeconds(timing.queue));
  writer.Double(TimingNumber::kComputeSeconds, absl::ToDoubleSeconds(timing.compute));
  writer.Double(TimingNumber::kSendSeconds, absl::ToDoubleSeconds(timing.send));
  writer.Varint(TimingNumber::kBatchRequests, timing.batch_requests);
  writer.Varint(TimingNumber::kTilesComputed, timing.stats.tiles_computed);
  writer.Varint(TimingNumber::kTilesSkipped, timing.stats.tiles_skipped);
  writer.Double(TimingNumber::kUploadSeconds, absl::ToDoubleSeconds(timing.stats.upload));
  writer.Double(TimingNumber::kKernelSeconds, absl::ToDoubleSeconds(timing.stats.kernel));
  writer.Double(TimingNumber::kDownloadSeconds, absl::ToDoubleSeconds(timing.stats.download));
  return writer.Take();
}

}  // namespace

absl::StatusOr<ParsedAttend> ParseAttendRequest(grpc::ByteBuffer* message,
                                                const AttendLimits& limits,
                                                const RegionRegistry* regions) {
  ParsedAttend parsed;
  // References the slices; an empty message has none.
  if (message->Length() > 0 && !message->Dump(&parsed.slices).ok()) {
    return absl::InternalError("the message's bytes cannot be had from the transport");
  }
  message->Clear();
  absl::StatusOr<AttendFields> fields = ReadAttendRequest(parsed.slices);
  if (!fields.ok()) return fields.status();
  parsed.fields = *std::move(fields);
  absl::StatusOr<ValidatedAttend> valid = ValidateAttend(parsed.fields, limits);
  if (!valid.ok()) return valid.status();
  parsed.valid = *std::move(valid);
  absl::StatusOr<RegionBinding> binding = BindRegions(parsed.fields, parsed.valid, regions);
  if (!binding.ok()) return binding.status();
  parsed.regions = *std::move(binding);

  parsed.slopes.resize(static_cast<size_t>(parsed.valid.num_slopes));
  const wire::GatherItem slopes = {.from = parsed.fields.slopes.data, .to = parsed.slopes.data()};
  wire::Gather(parsed.slices, {&slopes, 1}, nullptr);
  const absl::Status finite = CheckSlopes(parsed.slopes);
  if (!finite.ok()) return finite;
  return parsed;
}

absl::StatusOr<DecodedAttend> StageAttendRequest(ParsedAttend parsed, HostAllocator& allocator,
                                                 wire::CopyPool* copy_pool) {
  const AttendFields& fields = parsed.fields;
  DecodedAttend decoded;
  AttentionProblem& problem = decoded.problem;
  problem = parsed.valid.problem;

  struct Input {
    wire::ByteRange from;
    const void** pointer;
    size_t offset = 0;
  };
  std::vector<Input> inputs;
  const auto add_input = [&](const wire::TensorField& tensor, const char* in_region,
                             const void** pointer) {
    *pointer = in_region;
    if (in_region == nullptr) inputs.push_back({tensor.data, pointer});
  };
  RegionBinding& regions = parsed.regions;
  problem.on_device = regions.on_device;
  problem.device = regions.device;
  add_input(fields.q, regions.q, &problem.q);
  add_input(fields.k, regions.k, &problem.k);
  add_input(fields.v, regions.v, &problem.v);
  if (problem.bias_kind == BiasKind::kLowRank) {
    add_input(fields.phi_q, regions.phi_q, &problem.low_rank.phi_q);
    add_input(fields.phi_k, regions.phi_k, &problem.low_rank.phi_k);
  }
  BlockLayout input_layout;
  for (Input& input : inputs) input.offset = input_layout.Add(input.from.size);
  const bool lse_in_block = fields.want_lse && regions.lse == nullptr;
  BlockLayout output_layout;
  const size_t o_offset =
      regions.o == nullptr ? output_layout.Add(static_cast<size_t>(parsed.valid.o_bytes)) : 0;
  const size_t lse_offset =
      lse_in_block ? output_layout.Add(static_cast<size_t>(parsed.valid.lse_bytes)) : 0;

  if (input_layout.size() > allocator.max_total_bytes() ||
      output_layout.size() > allocator.max_total_bytes() - input_layout.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the request's tensors take ", input_layout.size() + output_layout.size(),
        " bytes of the server's host memory; accepted: at most ", allocator.max_total_bytes()));
  }
  // Where everything lies in regions, host memory need not have room.
  absl::StatusOr<HostBlock> input_block =
      inputs.empty() ? HostBlock() : allocator.Allocate(input_layout.size());
  if (!input_block.ok()) return input_block.status();
  absl::StatusOr<HostBlock> output_block = regions.o != nullptr && !lse_in_block
                                               ? HostBlock()
                                               : allocator.Allocate(output_layout.size());
  if (!output_block.ok()) return output_block.status();

  std::vector<wire::GatherItem> items;
  for (const Input& input : inputs) {
    char* const to = input_block->data() + input.offset;
    *input.pointer = to;
    items.push_back({.from = input.from, .to = to});
  }
  wire::Gather(parsed.slices, items, copy_pool);
  parsed.slices.clear();

  problem.o = regions.o != nullptr ? regions.o : output_block->data() + o_offset;
  if (fields.want_lse) {
    problem.lse = reinterpret_cast<float*>(
        regions.lse != nullptr ? regions.lse : output_block->data() + lse_offset);
  }
  auto storage = std::make_unique<AttendStorage>();
  storage->regions = std::move(regions.regions);
  storage->o_place = fields.o_place;
  storage->lse_place = fields.lse_place;
  storage->inputs = *std::move(input_block);
  storage->outputs = *std::move(output_block);
  storage->sequences = std::move(parsed.valid.sequences);
  storage->slopes = std::move(parsed.slopes);
  problem.sequences = storage->sequences;
  if (problem.bias_kind == BiasKind::kAlibi) problem.alibi.slopes = storage->slopes.data();
  decoded.bytes = static_cast<int64_t>(
      parsed.regions.bytes + storage->inputs.size() + storage->outputs.size() +
      storage->slopes.size() * sizeof(float) + storage->sequences.size() * sizeof(Sequence));
  decoded.storage = std::move(storage);
  return decoded;
}

grpc::ByteBuffer EncodeAttendResponse(const AttentionProblem& problem,
                                      std::unique_ptr<ProblemStorage> storage,
                                      const ResponseTiming& timing) {
  // The inputs need not wait for the transport, nor what is written in regions.
  auto& attend = static_cast<AttendStorage&>(*storage);
  attend.inputs = HostBlock();
  attend.regions.clear();
  const std::optional<wire::RegionPlace> o_place = attend.o_place;
  const std::optional<wire::RegionPlace> lse_place = attend.lse_place;
  const std::shared_ptr<ProblemStorage> shared = std::move(storage);

  wire::MessageWriter writer;
  const std::string timing_bytes = EncodeTiming(timing);
  writer.LengthDelimited(ResponseNumber::kTiming, timing_bytes.size());
  writer.Bytes(timing_bytes.data(), timing_bytes.size());

  std::vector<grpc::Slice> slices;
  const auto append = [&](int field, DType dtype, absl::Span<const int64_t> shape, void* data,
                          int64_t elements, const std::optional<wire::RegionPlace>& place) {
    if (place.has_value()) return writer.TensorInRegion(field, dtype, shape, *place);
    const uint64_t bytes = static_cast<uint64_t>(elements) * SizeOf(dtype);
    writer.TensorHeader(field, dtype, shape, bytes);
    slices.emplace_back(writer.Take());
    if (bytes > 0) slices.push_back(SliceOver(data, bytes, shared));
  };
  const int64_t rows = problem.total_q * problem.num_q_heads;
  if (problem.lse != nullptr) {
    append(ResponseNumber::kLse, DType::kFloat32, {problem.total_q, problem.num_q_heads},
           problem.lse, rows, lse_place);
  }
  append(ResponseNumber::kO, problem.dtype,
         {problem.total_q, problem.num_q_heads, problem.head_dim}, problem.o,
         rows * problem.head_dim, o_place);
  if (writer.size() > 0) slices.emplace_back(writer.Take());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace flashbias::server
