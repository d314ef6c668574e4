// Writes simulated load reports as HTML, to be looked at: report_samples FOLDER
#include <fstream>
#include <iostream>
#include <string>

#include "client/load/report/report_html.h"
#include "client/load/report/report_table.h"
#include "tests/client/load/simulated_report.h"

int main(int argc, char** argv) {
  using flashbias::client::FormatHtml;
  using flashbias::client::LoadReport;
  if (argc != 2) {
    std::cerr << "usage: report_samples FOLDER\n";
    return 2;
  }
  const std::string folder = argv[1];
  const auto write = [&](const std::string& name, const LoadReport& report) {
    std::ofstream file(folder + "/" + name + ".html");
    file << FormatHtml(report);
    std::cout << name << "\n" << flashbias::client::FormatTable(report) << "\n";
    return static_cast<bool>(file.flush());
  };
  const bool written = write("open", flashbias::client::SimulatedOpenLoopReport()) &&
                       write("closed", flashbias::client::SimulatedClosedLoopReport()) &&
                       write("sweep", flashbias::client::SimulatedSweepReport());
  if (!written) std::cerr << "cannot write to " << folder << "\n";
  return written ? 0 : 1;
}
