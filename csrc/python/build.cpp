// What was built and what this CPU takes of it, for `fastssl info`; no torch in here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "shared/isa.h"

PYBIND11_MODULE(_build, m) {
  m.doc() = "How the native library was built, and which instruction set it uses here.";
  m.def("selected_isa", [] { return std::string(fastssl::kIsaNames[int(fastssl::selected_isa())]); },
        "The instruction set that the CPU kernels use in this process.");
  m.def(
      "compiled_isas",
      [] {
#if defined(__x86_64__)
        return std::vector<std::string>(std::begin(fastssl::kIsaNames), std::end(fastssl::kIsaNames));
#else
        return std::vector<std::string>{"plain"};
#endif
      },
      "The instruction sets that the library holds kernels for.");
  m.def("compiler", [] { return std::string(
#if defined(__clang__)
      "clang " __clang_version__
#else
      "gcc " __VERSION__
#endif
      ); }, "The compiler that built it.");
}
