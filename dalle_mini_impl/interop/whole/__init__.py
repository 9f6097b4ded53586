"""Whole models of other projects."""
