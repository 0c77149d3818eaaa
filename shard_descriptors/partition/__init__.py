"""Who holds what: the `contract`, a file for each scheme, `schemes` to list them, and the `report`.

`groups` and `tools` are what schemes share.
"""
