"""Image search: an index of a folder's pictures that is updated in place, searched exactly, and exported.

Reading order: `index` has the public `ImageIndex`; `store` its files, `integrity` their checksums; `listing` and
`update` read and embed changed pictures; `scorers` says which scorer an index may load; `nearest` searches; `query`
reads queries of the command line; `export` writes the layout of clip-retrieval.
"""
