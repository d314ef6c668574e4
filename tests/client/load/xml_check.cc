#include "tests/client/load/xml_check.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/load/report/markup_text.h"

namespace flashbias::client {
namespace {

bool IsNameCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == ':';
}

// Whether `text` begins with one of the entities that XML has, or a decimal one.
bool StartsWithEntity(const std::string& text) {
  for (const char* entity : {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"}) {
    if (absl::StartsWith(text, entity)) return true;
  }
  if (!absl::StartsWith(text, "&#")) return false;
  const size_t end = text.find_first_not_of("0123456789", 2);
  return end != std::string::npos && end > 2 && text[end] == ';';
}

// What is wrong with text between tags or in an attribute; empty: nothing.
std::string CheckText(const std::string& text) {
  for (size_t n = 0; n < text.size(); ++n) {
    if (text[n] == '<') return "a stray <";
    if (text[n] == '&' && !StartsWithEntity(text.substr(n, 12))) return "a stray &";
  }
  std::string one_line = text;
  for (char& c : one_line) {
    if (c == '\n') c = ' ';
  }
  if (PrintableText(one_line) != one_line) return "characters that XML forbids";
  return "";
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  XmlCheck Run() {
    constexpr char kDoctype[] = "<!DOCTYPE html>";
    if (absl::StartsWith(text_, kDoctype)) at_ = sizeof(kDoctype) - 1;
    while (check_.error.empty() && at_ < text_.size()) Next();
    if (check_.error.empty() && !open_.empty()) check_.error = "not closed: " + open_.back();
    return std::move(check_);
  }

 private:
  void Fail(const std::string& what) {
    if (check_.error.empty()) {
      check_.error = absl::StrCat(what, " near: ", text_.substr(at_ < 40 ? 0 : at_ - 40, 100));
    }
  }

  void Next() {
    if (text_[at_] == '<') return Tag();
    const size_t end = std::min(text_.find('<', at_), text_.size());
    const std::string text = text_.substr(at_, end - at_);
    if (const std::string wrong = CheckText(text); !wrong.empty()) Fail(wrong);
    if (open_.empty() && text.find_first_not_of(" \n") != std::string::npos) Fail("text outside");
    if (!check_.elements.empty()) check_.elements.back().text += text;
    at_ = end;
  }

  std::string Name() {
    const size_t begin = at_;
    while (at_ < text_.size() && IsNameCharacter(text_[at_])) ++at_;
    if (at_ == begin) Fail("no name");
    return text_.substr(begin, at_ - begin);
  }

  bool Take(const std::string& wanted) {
    if (text_.compare(at_, wanted.size(), wanted) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  void Tag() {
    if (Take("</")) {
      const std::string name = Name();
      if (open_.empty() || open_.back() != name) return Fail("closes what is not open: " + name);
      open_.pop_back();
      if (!Take(">")) Fail("no >");
      return;
    }
    Take("<");
    XmlElement element{.name = Name()};
    if (open_.empty() && !check_.elements.empty()) Fail("a second root");
    while (check_.error.empty() && at_ < text_.size() && text_[at_] == ' ') {
      ++at_;
      std::string name = Name();
      if (!Take("=\"")) return Fail("no value");
      const size_t end = text_.find('"', at_);
      if (end == std::string::npos) return Fail("no end of a value");
      std::string value = text_.substr(at_, end - at_);
      if (const std::string wrong = CheckText(value); !wrong.empty()) Fail(wrong);
      for (const auto& [other, unused] : element.attributes) {
        if (other == name) Fail("twice: " + name);
      }
      element.attributes.emplace_back(std::move(name), std::move(value));
      at_ = end + 1;
    }
    const bool empty = Take("/");
    if (!Take(">")) return Fail("no >");
    if (!empty) open_.push_back(element.name);
    check_.elements.push_back(std::move(element));
  }

  const std::string& text_;
  size_t at_ = 0;
  std::vector<std::string> open_;
  XmlCheck check_;
};

}  // namespace

XmlCheck CheckXml(const std::string& text) { return Parser(text).Run(); }

}  // namespace flashbias::client
