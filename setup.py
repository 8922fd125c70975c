"""Builds the native library and what helps Python; everything else is in pyproject.toml.

FASTSSL_BUILD_CPP=0           pure Python install
FASTSSL_BUILD_CUDA=auto|0|1   CUDA sources too; auto: when nvcc and a CUDA torch are both there
MAX_JOBS, TORCH_CUDA_ARCH_LIST as in torch.utils.cpp_extension
"""

import os
import sys
from pathlib import Path

from setuptools import setup

CPP_SOURCES = [
    "csrc/cpu/augment.cpp",
    "csrc/cpu/augment_parameters.cpp",
    "csrc/cpu/ema_update.cpp",
    "csrc/cpu/kept.cpp",
    "csrc/cpu/lars_step.cpp",
    "csrc/cpu/prototype_cross_entropy.cpp",
    "csrc/cpu/similarity_lse.cpp",
    "csrc/cpu/similarity_softplus.cpp",
    "csrc/cpu/similarity_topk.cpp",
    "csrc/cpu/sinkhorn.cpp",
    "csrc/cpu/isa/avx512.cpp",
    "csrc/cpu/isa/avx2.cpp",
    "csrc/cpu/isa/plain.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/binding.cpp",
    "csrc/cuda/augment.cu",
    "csrc/cuda/augment_parameters.cu",
]

# torch's stable ABI, frozen at the oldest torch supported: one build serves every later one.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# Products are rounded by themselves but where a kernel asks for more.
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false"]
CXX_FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]


def want_cuda() -> bool:
    choice = os.environ.get("FASTSSL_BUILD_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"FASTSSL_BUILD_CUDA must be auto, 0 or 1, not {choice!r}")
    if choice == "0":
        return False
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    able = CUDA_HOME is not None and torch.version.cuda is not None
    if choice == "1" and not able:
        sys.exit(
            f"FASTSSL_BUILD_CUDA=1 needs nvcc (found: {CUDA_HOME}) "
            f"and a CUDA build of torch (found: {torch.version.cuda})"
        )
    return able


def pybind_headers() -> list[str]:
    """None where it is not installed: torch brings a copy among its own headers."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def extensions() -> dict:
    if os.environ.get("FASTSSL_BUILD_CPP", "1") == "0":
        return {}
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    native = CppExtension(
        "fastssl._native",
        CPP_SOURCES,
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args={"cxx": CXX_FLAGS + STABLE_ABI},
        py_limited_api=True,
    )
    build = CppExtension(
        "fastssl._build",
        ["csrc/python/build.cpp"],
        include_dirs=[os.path.abspath("csrc"), *pybind_headers()],
        extra_compile_args=["-O1", "-std=c++20"],
    )
    walk = CppExtension(
        "fastssl._walk",
        ["csrc/python/walk.cpp"],
        include_dirs=pybind_headers(),
        extra_compile_args=["-O2", "-std=c++20"],
    )
    modules = [native, build, walk]
    if want_cuda():
        if not torch.cuda.is_available():  # else torch takes what is there
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")
        modules.append(
            CUDAExtension(
                "fastssl._cuda",
                CUDA_SOURCES,
                include_dirs=[os.path.abspath("csrc")],
                extra_compile_args={
                    "cxx": [*CXX_FLAGS, *STABLE_ABI, "-DUSE_CUDA"],
                    "nvcc": NVCC_FLAGS,
                },
                py_limited_api=True,
                optional=os.environ.get("FASTSSL_BUILD_CUDA", "auto") == "auto",
            )
        )

    class Build(BuildExtension):
        """Without CUDA's kernels where those do not build and nobody asked for them by name."""

        def run(self) -> None:
            # Kernels of an earlier build would load in the place of those that are left out.
            for folder in [Path(self.build_lib), *[Path()] * bool(self.inplace)]:
                for old in folder.glob("fastssl/_cuda*.so"):
                    old.unlink()
            super().run()

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if not any(module.optional for module in self.extensions):
                    raise
                print(f"CUDA kernels are left out: {error}", file=sys.stderr)
                self.extensions = [m for m in self.extensions if not m.optional]
                super().build_extensions()

    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}}


setup(**extensions())
