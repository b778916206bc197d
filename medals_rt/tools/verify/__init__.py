"""Hold a bundle to PyTorch on the machine at hand; the command `medals-rt verify` is this.

`measures` says how near two results are, `references` what is compared with what, `graphs` and
`cases` make the two kinds of comparison, `verify` judges them and writes them down.
"""
