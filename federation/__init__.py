"""OpenFL 1.6 made dependable; knows nothing of audio.

A room for everyone: `director` (the operator's), `site` (the data owner's), `notebook` (the experimenter's), and
`wire`, what they share. Here lies what no room owns: settings, policy, schedule, certificates (`authority`), errors,
logs; and the commands `envoy`, `review` and `certificates` (the director's is `director.__main__`).

Where the engine lets a class be named it is subclassed; each module says which file and line of the engine it mends,
and what was wrong there.
"""
