// The tensors that a module and all in it hold, which every step of an average looks at anew: Python
// takes a tenth of a millisecond for it.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// fn(tensor) for parameters and buffers, module by module, in order, those of shared modules again;
// false as soon as fn is, or where a table is no dict.
template <class Fn>
bool walk(PyObject* module, const Fn& fn) {
  static PyObject* const names[] = {PyUnicode_InternFromString("_parameters"),
                                    PyUnicode_InternFromString("_buffers"),
                                    PyUnicode_InternFromString("_modules")};
  const auto all = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
  if (!all) throw py::error_already_set();
  for (PyObject* name : names) {
    PyObject* table = PyDict_GetItemWithError(all.ptr(), name);
    if (!table || !PyDict_Check(table)) return false;
    Py_ssize_t place = 0;
    PyObject* value;
    while (PyDict_Next(table, &place, nullptr, &value))
      if (value != Py_None && !(name == names[2] ? walk(value, fn) : fn(value))) return false;
  }
  return true;
}

bool holds(py::handle module, py::list tensors) {
  Py_ssize_t at = 0;
  const Py_ssize_t count = PyList_GET_SIZE(tensors.ptr());
  const bool all = walk(module.ptr(), [&](PyObject* tensor) {
    return at < count && PyList_GET_ITEM(tensors.ptr(), at++) == tensor;
  });
  return all && at == count;
}

py::list tensors_in(py::handle module) {
  py::list found;
  walk(module.ptr(), [&](PyObject* tensor) { return found.append(py::handle(tensor)), true; });
  return found;
}

}  // namespace

PYBIND11_MODULE(_walk, m) {
  m.def("holds", &holds, "Whether a module's tensors are these very ones.");
  m.def("tensors_in", &tensors_in, "Parameters and buffers of a module and all in it, in order.");
}
