"""The data owner's side: what is recorded here, by whom, and which shard it belongs to.

Read in this order: `labels`, `utterances`, `speech_commands` (the official archives), `synthetic`
(a stand-in made on the spot), `corpus` (which of the two), `partition`, `audio`, `report`.
Only `superb_ks`, the shard descriptor that OpenFL loads, imports OpenFL.
"""
