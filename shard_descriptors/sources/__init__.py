"""Where recordings come from: a module with a function `load` for each source; `registry` lists them."""
