"""The data owner's side: what is recorded here, by whom, and which shard it belongs to.

Read in this order: `labels`, `utterances`, `corpus` (what a source gives), `sources` (which source), `speech_commands`
(the official archives; `archives` fetches and unpacks them), `synthetic` (a stand-in made on the spot), `folder`,
`table` and `hugging_face` (other recordings, by the same `rules`), `partition` and `schemes`, `report`,
`audio`, `clips`.
Only `descriptor` and `superb_ks`, the shard descriptors that OpenFL loads, need OpenFL.
"""
