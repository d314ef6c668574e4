// Structured log lines on stderr: an event and its fields, as key=value text or as JSON.
//
//   Log(LogLevel::kInfo, "serving", {{"address", address}, {"port", port}});
//
// Thread-safety: Log may be called from any thread; InitLog once, before other threads start.
// Before InitLog, and in tests, lines appear as text from level info on.
#ifndef FLASHBIAS_SERVER_LOG_H_
#define FLASHBIAS_SERVER_LOG_H_

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace flashbias::server {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogField {
  LogField(std::string_view field_key, std::string_view field_value)
      : key(field_key), value(field_value), quoted(true) {}
  LogField(std::string_view field_key, const char* field_value)
      : LogField(field_key, std::string_view(field_value)) {}
  LogField(std::string_view field_key, const std::string& field_value)
      : LogField(field_key, std::string_view(field_value)) {}
  LogField(std::string_view field_key, absl::Duration field_value)
      : key(field_key), value(absl::FormatDuration(field_value)), quoted(true) {}
  LogField(std::string_view field_key, bool field_value)
      : key(field_key), value(field_value ? "true" : "false"), quoted(false) {}
  template <std::integral T>
  LogField(std::string_view field_key, T field_value)
      : key(field_key), value(std::to_string(field_value)), quoted(false) {}

  std::string_view key;
  std::string value;
  bool quoted;  // a string, not a number or boolean
};

void InitLog(LogLevel level, LogFormat format);

// Whether Log at this level writes anything; for callers whose fields cost something to make.
bool LogEnabled(LogLevel level);

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// What Log writes between the time stamp and the end of the line.
std::string FormatLog(LogFormat format, std::string_view event,
                      std::initializer_list<LogField> fields);

// Writes out what is buffered.
void FlushLog();

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_LOG_H_
