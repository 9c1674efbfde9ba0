"""Tensors in, tensors out: the equations of the library, one file a subject. No I/O, no config, no state.

One alphabet of shapes: ``batch`` rows, ``time`` target positions, ``prompts`` x ``group`` completions, ``vocab``,
``states``, ``actions``. Numbers are promoted to at least float32 and float64 stays float64.
"""
