"""The standard benchmarks of the paper, LongBench and SCROLLS, through lm-evaluation-harness."""
