#include "tests/bench/bench_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace flashbias::bench {
namespace {

std::string Version(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

double SkippedShare(const BenchRow& row) {
  const double all = static_cast<double>(row.tiles_computed + row.tiles_skipped);
  return all > 0 ? static_cast<double>(row.tiles_skipped) / all : 0;
}

double ShareOfFloor(const BenchRow& row) { return row.floor.Largest() / row.times.median_ms; }

nlohmann::json OrNull(const std::optional<double>& value) {
  return value.has_value() ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

}  // namespace

std::string FormatHeader(const BenchReport& report) {
  std::string text = absl::StrFormat(
      "%s (sm_%d, %d SMs, up to %.2f GHz), driver for CUDA %s, runtime %s\n"
      "floors at %.2f GHz: %.0f tensor operations and %.0f ex2 per clock and SM, %.2f TB/s\n",
      report.device.name, report.device.compute_capability, report.rates.num_sms,
      report.device.max_clock_ghz, Version(report.device.driver_version),
      Version(report.device.runtime_version), report.rates.clock_hz * 1e-9,
      report.rates.tensor_flops_per_clock_per_sm, report.rates.exps_per_clock_per_sm,
      report.rates.memory_bytes_per_s * 1e-12);
  absl::StrAppendFormat(
      &text, "%8s %8s %9s %9s %9s %9s | %10s %10s %7s | %7s | %8s %8s %8s %6s | %9s", "keys",
      "queries", "kernel", "median ms", "min ms", "p90 ms", "tiles", "skipped", "share", "TFLOPS",
      "tensor", "exp", "memory", "floor", "rel.error");
  return text;
}

std::string FormatRow(const BenchRow& row) {
  const std::string tflops =
      row.dense_tflops.has_value() ? absl::StrFormat("%.1f", *row.dense_tflops) : "-";
  const std::string error =
      row.relative_error.has_value() ? absl::StrFormat("%.2e", *row.relative_error) : "-";
  return absl::StrFormat(
      "%8d %8d %9s %9.4f %9.4f %9.4f | %10d %10d %6.1f%% | %7s | %8.4f %8.4f %8.4f %5.1f%% | %9s",
      row.shape.kv_len, row.shape.q_len, row.family, row.times.median_ms, row.times.min_ms,
      row.times.p90_ms, row.tiles_computed, row.tiles_skipped, 100 * SkippedShare(row), tflops,
      row.floor.tensor, row.floor.exp, row.floor.memory, 100 * ShareOfFloor(row), error);
}

std::string FormatJson(const BenchReport& report) {
  nlohmann::json json;
  json["device"] = {{"name", report.device.name},
                    {"compute_capability", report.device.compute_capability},
                    {"num_sms", report.rates.num_sms},
                    {"max_clock_ghz", report.device.max_clock_ghz},
                    {"driver_cuda_version", Version(report.device.driver_version)},
                    {"runtime_version", Version(report.device.runtime_version)}};
  json["rates"] = {{"clock_ghz", report.rates.clock_hz * 1e-9},
                   {"tensor_flops_per_clock_per_sm", report.rates.tensor_flops_per_clock_per_sm},
                   {"exps_per_clock_per_sm", report.rates.exps_per_clock_per_sm},
                   {"memory_tb_per_s", report.rates.memory_bytes_per_s * 1e-12}};
  json["flags"] = nlohmann::json::object();
  for (const auto& [name, value] : report.flags) json["flags"][name] = value;
  json["rows"] = nlohmann::json::array();
  for (const BenchRow& row : report.rows) {
    const bool backward = row.shape.direction == Direction::kBackward;
    json["rows"].push_back({{"direction", backward ? "backward" : "forward"},
                            {"seq_len", row.shape.kv_len},
                            {"q_len", row.shape.q_len},
                            {"batch", row.shape.batch},
                            {"heads", row.shape.num_q_heads},
                            {"kv_heads", row.shape.num_kv_heads},
                            {"head_dim", row.shape.head_dim},
                            {"dtype", Name(row.shape.dtype)},
                            {"eps", row.shape.eps},
                            {"kernel", row.family},
                            {"launches", row.times.launches},
                            {"median_ms", row.times.median_ms},
                            {"min_ms", row.times.min_ms},
                            {"p90_ms", row.times.p90_ms},
                            {"tiles_computed", row.tiles_computed},
                            {"tiles_skipped", row.tiles_skipped},
                            {"skipped_share", SkippedShare(row)},
                            {"dense_tflops", OrNull(row.dense_tflops)},
                            {"floor_tensor_ms", row.floor.tensor},
                            {"floor_exp_ms", row.floor.exp},
                            {"floor_memory_ms", row.floor.memory},
                            {"share_of_floor", ShareOfFloor(row)},
                            {"relative_error", OrNull(row.relative_error)}});
  }
  return json.dump(2);
}

}  // namespace flashbias::bench
