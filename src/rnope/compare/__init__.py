"""The paper's comparison: a recipe's arms trained, asked and judged, into one results file and its page.

`plan` says what is to be done, `work` does one piece of it, `pool` runs pieces on several processes, `verdicts` judges,
`run` puts it together.
"""
