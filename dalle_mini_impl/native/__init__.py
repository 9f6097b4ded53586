"""Decoding in compiled code, on a CPU that multiplies bf16 and has a C compiler."""
