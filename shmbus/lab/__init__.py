"""Things to see: work that shows what the bus does, each in a module of its own with a typed result.

``wordcount`` counts the identifiers of many files through a bus, and once more without it.
"""
