#include "client/load/engine/server_metrics.h"

#include <curl/curl.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {
namespace {

constexpr size_t kMostBytes = 64 << 20;

// Where the name and labels of a sample end; nullopt: it has no end. Quoted label values may hold
// anything, an escaped quote too.
std::optional<size_t> EndOfName(absl::string_view line) {
  bool braces = false;
  bool quoted = false;
  for (size_t n = 0; n < line.size(); ++n) {
    if (quoted) {
      if (line[n] == '\\') {
        ++n;
      } else if (line[n] == '"') {
        quoted = false;
      }
    } else if (line[n] == '"') {
      quoted = true;
    } else if (line[n] == '{') {
      braces = true;
    } else if (line[n] == '}') {
      return n + 1;
    } else if (!braces && absl::ascii_isspace(line[n])) {
      return n;
    }
  }
  return std::nullopt;
}

std::optional<std::pair<std::string, double>> ParseSample(absl::string_view line) {
  line = absl::StripAsciiWhitespace(line);
  if (line.empty() || line.front() == '#') return std::nullopt;
  const std::optional<size_t> end = EndOfName(line);
  if (!end.has_value() || *end == 0) return std::nullopt;
  // The value, and perhaps a timestamp.
  const std::vector<absl::string_view> rest =
      absl::StrSplit(line.substr(*end), absl::ByAnyChar(" \t"), absl::SkipEmpty());
  double value = 0;
  if (rest.empty() || rest.size() > 2 || !absl::SimpleAtod(rest[0], &value)) return std::nullopt;
  return std::pair(std::string(line.substr(0, *end)), value);
}

bool IsCounter(std::string_view sample) {
  const std::string_view name = sample.substr(0, sample.find('{'));
  return name.ends_with("_total") || name.ends_with("_count") || name.ends_with("_sum") ||
         name.ends_with("_bucket");
}

size_t Append(char* data, size_t size, size_t count, void* body) {
  auto* const text = static_cast<std::string*>(body);
  // Less than what came ends the transfer.
  if (text->size() + size * count > kMostBytes) return 0;
  text->append(data, size * count);
  return size * count;
}

}  // namespace

MetricSamples ParseMetrics(std::string_view text) {
  MetricSamples samples;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    auto sample = ParseSample(line);
    if (sample.has_value()) samples.insert_or_assign(std::move(sample->first), sample->second);
  }
  return samples;
}

absl::StatusOr<MetricSamples> ScrapeMetrics(const std::string& address, absl::Duration timeout) {
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(),
                                                                 &curl_easy_cleanup);
  if (curl == nullptr) return absl::UnavailableError("libcurl cannot be used");
  const std::string url = absl::StrCat("http://", address, "/metrics");
  std::string body;
  char error[CURL_ERROR_SIZE] = "";
  const auto milliseconds =
      static_cast<long>(std::clamp<int64_t>(absl::ToInt64Milliseconds(timeout), 1, 3'600'000));
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http");
  curl_easy_setopt(curl.get(), CURLOPT_PROXY, "");
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, milliseconds);
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &Append);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  const CURLcode code = curl_easy_perform(curl.get());
  if (code != CURLE_OK) {
    return absl::UnavailableError(
        absl::StrCat(url, ": ", error[0] != '\0' ? error : curl_easy_strerror(code)));
  }
  long answer = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &answer);
  if (answer != 200) return absl::UnavailableError(absl::StrCat(url, " answered ", answer));
  return ParseMetrics(body);
}

MetricSamples CounterGrowth(const MetricSamples& before, const MetricSamples& after) {
  MetricSamples growth;
  for (const auto& [name, value] : after) {
    if (!IsCounter(name)) continue;
    const auto was = before.find(name);
    const bool reset = was == before.end() || value < was->second;
    const double grew = reset ? value : value - was->second;
    if (grew > 0) growth.emplace(name, grew);
  }
  return growth;
}

}  // namespace flashbias::client
