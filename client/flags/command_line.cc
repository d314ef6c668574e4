#include "client/flags/command_line.h"

#include <utility>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace flashbias::client {
namespace {

absl::Status Set(absl::CommandLineFlag* flag, absl::string_view name, absl::string_view value) {
  std::string error;
  if (flag->ParseFrom(value, &error)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, ": cannot read '", value, "'", error.empty() ? "" : ": ", error));
}

}  // namespace

absl::StatusOr<CommandLine> ParseFlags(absl::Span<const char* const> arguments,
                                       const std::map<std::string, std::string>& standalone) {
  for (size_t n = 0; n < arguments.size(); ++n) {
    const absl::string_view argument = arguments[n];
    if (!absl::StartsWith(argument, "-") || argument.size() < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", argument, "' is no flag; accepted: --name=value (--help lists them)"));
    }
    absl::string_view name = argument.substr(absl::StartsWith(argument, "--") ? 2 : 1);
    if (name == "help") return CommandLine{.help = true};
    const size_t equals = name.find('=');
    const bool has_value = equals != absl::string_view::npos;
    const absl::string_view given = has_value ? name.substr(equals + 1) : absl::string_view();
    if (has_value) name = name.substr(0, equals);

    absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    absl::string_view value = given;
    if (flag == nullptr && !has_value && absl::StartsWith(name, "no")) {
      flag = absl::FindCommandLineFlag(name.substr(2));
      if (flag != nullptr && !flag->IsOfType<bool>()) flag = nullptr;
      value = "false";
    } else if (flag != nullptr && !has_value) {
      const auto alone = standalone.find(std::string(name));
      if (flag->IsOfType<bool>()) {
        value = "true";
      } else if (alone != standalone.end()) {
        value = alone->second;
      } else if (n + 1 < arguments.size()) {
        value = arguments[++n];
      } else {
        return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
      }
    }
    if (flag == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no flag --", name, " (--help lists them)"));
    }
    if (absl::Status status = Set(flag, name, value); !status.ok()) return status;
  }
  return CommandLine{};
}

std::string HelpText(absl::string_view usage, absl::string_view file_part) {
  std::map<std::string, const absl::CommandLineFlag*> sorted;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::StrContains(flag->Filename(), file_part)) sorted.emplace(std::string(name), flag);
  }
  std::string text(usage);
  for (const auto& [name, flag] : sorted) {
    absl::StrAppend(&text, "\n  --", name, "  (default: ", flag->DefaultValue(), ")\n      ",
                    flag->Help());
  }
  return text + "\n";
}

std::string ErrorLine(absl::string_view program, const absl::Status& status) {
  return absl::StrReplaceAll(
      absl::StrCat(program, ": ", absl::StatusCodeToString(status.code()), ": ",
                   absl::string_view(status.message().data(), status.message().size())),
      {{"\n", " "}, {"\r", " "}});
}

}  // namespace flashbias::client
