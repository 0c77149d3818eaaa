"""Sound: from a file to clips of one length, decoded once and kept.

`audio` decodes and resamples, `packed` keeps samples in a file that is mapped, `clip_set` is the clips by number, and
`cache` is the folder for whatever is made once.
"""
