"""The registry together with the files it points at: what `lorahub.open()` returns, and the verbs of the command line.

Each verb is a function of a Workspace in a file of its own; nothing here imports torch unless weights are read.
"""
