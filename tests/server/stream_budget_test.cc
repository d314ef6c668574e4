#include "server/stream_budget.h"

#include <gtest/gtest.h>

#include <memory>

namespace flashbias::server {
namespace {

TEST(StreamBudgetTest, GivesWhatIsLeftAndTakesItBack) {
  auto budget = std::make_shared<StreamBudget>(100);
  EXPECT_EQ(budget->Reserve(101), nullptr);
  std::shared_ptr<void> first = budget->Reserve(60);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(budget->Reserve(41), nullptr);
  std::shared_ptr<void> second = budget->Reserve(40);
  EXPECT_EQ(budget->reserved(), 100);
  EXPECT_NE(budget->Reserve(0), nullptr);
  first.reset();
  EXPECT_EQ(budget->reserved(), 40);
  budget.reset();
  second.reset();  // the budget lives as long as what it gave
}

}  // namespace
}  // namespace flashbias::server
