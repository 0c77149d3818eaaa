"""Where recordings come from: a module with a function `load` for each source; `registry` lists them.

`speech_commands` (the official archives; `archives` fetches and unpacks them), `synthetic` (a stand-in made on the
spot), `folder`, `table` and `hugging_face` (other recordings; `rules` is what they share).
"""
