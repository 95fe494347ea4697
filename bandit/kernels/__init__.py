"""Compiled kernels: arrays in, arrays out; no objects, no I/O, no hidden random state.

A kernel checks nothing: shapes and finiteness are its caller's duty. Bits do not depend on the
platform's mathematical library: elementary functions are ``arithmetic``'s own, sums keep their
order, and nothing calls BLAS.
"""
