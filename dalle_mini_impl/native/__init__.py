"""Decoding in compiled code, on a machine with a C compiler."""
