// The text that the model learns: the opening of Lewis Carroll's "Alice's Adventures in Wonderland"
// (1865), which is in the public domain, with its quotation marks and dashes in ASCII.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TEXT_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TEXT_H_

#include "absl/strings/string_view.h"

namespace flashbias::examples {

// Lives as long as the program.
absl::string_view Text();

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_TEXT_H_
