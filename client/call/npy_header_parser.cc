#include "client/call/npy_header_parser.h"

#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

class Parser {
 public:
  explicit Parser(absl::string_view text) : text_(text) {}

  bool Dict(NpyHeaderFields* fields) {
    if (!Take('{')) return false;
    std::set<std::string> seen;
    while (!Take('}')) {
      std::string key;
      if (!String(&key) || !Take(':') || !seen.insert(key).second || !Value(key, fields)) {
        return false;
      }
      if (!Take(',') && Peek() != '}') return false;
    }
    SkipSpace();
    return at_ == text_.size() && seen == std::set<std::string>{"descr", "fortran_order", "shape"};
  }

 private:
  bool Value(const std::string& key, NpyHeaderFields* fields) {
    if (key == "descr") {
      if (Peek() == '[' || Peek() == '(') {
        fields->structured = true;
        return SkipBrackets();
      }
      return String(&fields->descr);
    }
    if (key == "fortran_order") return Bool(&fields->fortran_order);
    return key == "shape" && Tuple(&fields->shape);
  }

  void SkipSpace() {
    while (at_ < text_.size() && absl::ascii_isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  // The next character that is no space; 0 at the end.
  char Peek() {
    SkipSpace();
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }

  bool String(std::string* value) {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') return false;
    const size_t end = text_.find(quote, at_ + 1);
    if (end == absl::string_view::npos) return false;
    value->assign(text_.data() + at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return true;
  }

  bool Bool(bool* value) {
    SkipSpace();
    const absl::string_view rest = text_.substr(at_);
    *value = absl::StartsWith(rest, "True");
    if (!*value && !absl::StartsWith(rest, "False")) return false;
    at_ += *value ? 4 : 5;
    return true;
  }

  bool Tuple(std::vector<int64_t>* values) {
    if (!Take('(')) return false;
    while (!Take(')')) {
      int64_t value = 0;
      if (!Integer(&value)) return false;
      values->push_back(value);
      if (!Take(',') && Peek() != ')') return false;
    }
    return true;
  }

  bool Integer(int64_t* value) {
    bool any = false;
    for (SkipSpace(); at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const int digit = text_[at_] - '0';
      if (*value > (std::numeric_limits<int64_t>::max() - digit) / 10) return false;
      *value = *value * 10 + digit;
      any = true;
    }
    if (any && at_ < text_.size() && text_[at_] == 'L') ++at_;  // written by Python 2
    return any;
  }

  bool SkipBrackets() {
    int depth = 0;
    do {
      const char c = Peek();
      if (c == '\0') return false;
      if (c == '\'' || c == '"') {
        std::string ignored;
        if (!String(&ignored)) return false;
        continue;
      }
      if (c == '[' || c == '(') ++depth;
      if (c == ']' || c == ')') --depth;
      ++at_;
    } while (depth > 0);
    return true;
  }

  const absl::string_view text_;
  size_t at_ = 0;
};

}  // namespace

absl::StatusOr<NpyHeaderFields> ParseNpyHeader(absl::string_view header) {
  NpyHeaderFields fields;
  if (!Parser(header).Dict(&fields)) {
    return absl::InvalidArgumentError(
        "its header is not a dict of 'descr', 'fortran_order' and a 'shape' of 64-bit extents");
  }
  return fields;
}

}  // namespace flashbias::client
