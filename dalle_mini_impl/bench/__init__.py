"""Speed against peers and the machine's limits (`dalle bench`), and image tokenizer variants (`dalle compare`).

Reading order: `timing` measures seconds and memory, `machine` the machine's limits, `shapes` counts the least work,
`report` holds the rows; each other module measures one kind of work. `doctor` measures nothing: it looks
at what the machine has and lacks (`dalle doctor`).
"""
