"""Build of the native encoder. It is optional: the pure-Python encoder writes the same bytes."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("server.encode._encode", ["server/encode/_encode.pyx"], extra_compile_args=["-O3"], optional=True)],
    ),
)
