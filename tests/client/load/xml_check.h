// Whether a text is well-formed XML, as far as generated pages go: balanced tags, quoted attributes
// that differ, the five entities and numeric ones, no stray < or &, valid UTF-8 without control
// characters. No CDATA, comments or processing instructions.
#ifndef FLASHBIAS_TESTS_CLIENT_LOAD_XML_CHECK_H_
#define FLASHBIAS_TESTS_CLIENT_LOAD_XML_CHECK_H_

#include <string>
#include <utility>
#include <vector>

namespace flashbias::client {

struct XmlElement {
  std::string name;
  std::vector<std::pair<std::string, std::string>> attributes;  // as written
  std::string text;                                             // up to the next tag, as written

  std::string Attribute(const std::string& wanted) const {
    for (const auto& [name_of, value] : attributes) {
      if (name_of == wanted) return value;
    }
    return "";
  }
};

struct XmlCheck {
  std::string error;                 // empty: well-formed
  std::vector<XmlElement> elements;  // in the order in which they begin
};

XmlCheck CheckXml(const std::string& text);

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_LOAD_XML_CHECK_H_
