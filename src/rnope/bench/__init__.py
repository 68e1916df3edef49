"""Benchmarks of attention, prefill, decode, memory and training, beside named peers and the limits of the machine.

A *plan* gives *rows* (a length, a number of threads, a dtype); in a row *contestants* take turns, A B A B …; every time
goes to one JSON file as it comes. Tables and figures are made from that file alone.
"""
