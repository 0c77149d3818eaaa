"""The data owner's side: what is recorded here, by whom, and which shard it belongs to.

Read in this order: `labels`, `utterances`, `splits`, `corpus` (what a source gives); the rooms `sources` (where
recordings come from), `partition` (who holds what) and `clips` (from a file to samples), each with a list of its own;
then `descriptor` and `superb_ks`, the shard descriptors that OpenFL loads. Only these two need OpenFL.
"""
